//! Factory parameters from names and values, as configuration and command line give them.

use std::collections::BTreeMap;

use factory_tree::params::{FactoryParams, ParamsError};
use serde_json::Value;

/// Why parameters are refused.
#[derive(Debug, thiserror::Error)]
pub enum ParamError {
    /// A name that is none.
    #[error("there is no factory parameter {name:?}; there are: {known}")]
    Unknown {
        /// As given.
        name: String,
        /// All names.
        known: String,
    },
    /// A value of the wrong kind, or out of its type's range.
    #[error("{name} = {value} is not a value for this parameter ({cause})")]
    Value {
        /// Which parameter.
        name: String,
        /// As given.
        value: String,
        /// serde's words.
        cause: String,
    },
    /// Parameters that contradict each other or leave their range.
    #[error(transparent)]
    Params(#[from] ParamsError),
}

/// `base` with the parameters in `set` replaced, validated.
///
/// # Errors
/// [`ParamError`].
pub fn with(
    base: &FactoryParams,
    set: &BTreeMap<String, Value>,
) -> Result<FactoryParams, ParamError> {
    let mut params = base.clone();
    for (name, value) in set {
        params = with_one(&params, name, value)?;
    }
    params.validate()?;
    Ok(params)
}

fn with_one(base: &FactoryParams, name: &str, value: &Value) -> Result<FactoryParams, ParamError> {
    let bad = |cause: serde_json::Error| ParamError::Value {
        name: name.to_owned(),
        value: value.to_string(),
        cause: cause.to_string(),
    };
    let mut fields = serde_json::to_value(base).map_err(bad)?;
    let known = || {
        let fields = serde_json::to_value(base).unwrap_or_default();
        let names = fields
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys());
        // The network is the coordinator's, not a factory's to choose.
        names
            .filter(|name| *name != "network")
            .cloned()
            .collect::<Vec<_>>()
            .join(", ")
    };
    let field = fields.get_mut(name).filter(|_| name != "network");
    let Some(field) = field else {
        return Err(ParamError::Unknown {
            name: name.to_owned(),
            known: known(),
        });
    };
    *field = value.clone();
    serde_json::from_value(fields).map_err(bad)
}

/// `name=value` from the command line. What is not JSON is a string, and `a,b` a list of numbers.
#[must_use]
pub fn parse(text: &str) -> Option<(String, Value)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim().replace('-', "_");
    let value = value.trim();
    let list = || -> Option<Value> {
        let numbers = value
            .split(',')
            .map(|part| part.trim().parse::<u64>().ok().map(Value::from));
        numbers.collect::<Option<Vec<_>>>().map(Value::Array)
    };
    let value = match name.as_str() {
        "static_arities" => list().unwrap_or_else(|| Value::String(value.to_owned())),
        _ => serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())),
    };
    (!name.is_empty()).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use factory_tree::params::{ExpiryPolicy, Profile};

    fn base() -> FactoryParams {
        FactoryParams::profile(Profile::Lite, Network::Regtest)
    }

    fn set(text: &[&str]) -> BTreeMap<String, Value> {
        text.iter().map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn every_kind_of_value_is_set() {
        let given = set(&[
            "active=200",
            "static-arities=4,4",
            "expiry_policy=lsp_reclaim",
            "k=3",
        ]);
        let params = with(&base(), &given).unwrap();
        assert_eq!((params.active, params.k), (200, 3));
        assert_eq!(params.static_arities, Some(vec![4, 4]));
        assert_eq!(params.expiry_policy, ExpiryPolicy::LspReclaim);
        let automatic = with(&params, &set(&["static_arities=null"]));
        assert!(automatic.is_err(), "null is not a list of numbers");
    }

    #[test]
    fn one_arity_is_a_list_of_one() {
        let params = with(&base(), &set(&["static_arities=4"])).unwrap();
        assert_eq!(params.static_arities, Some(vec![4]));
    }

    #[test]
    fn refusals_name_the_parameter() {
        let unknown = with(&base(), &set(&["actve=1"])).unwrap_err();
        assert!(
            unknown.to_string().contains("\"actve\"") && unknown.to_string().contains("active")
        );
        assert!(matches!(
            with(&base(), &set(&["network=bitcoin"])),
            Err(ParamError::Unknown { .. })
        ));
        let kind = with(&base(), &set(&["k=many"])).unwrap_err();
        assert!(kind.to_string().starts_with("k = \"many\""), "{kind}");
        assert!(matches!(
            with(&base(), &set(&["k=300"])),
            Err(ParamError::Value { .. })
        ));
        assert!(matches!(
            with(&base(), &set(&["k=5"])),
            Err(ParamError::Params(_))
        ));
        assert!(parse("active").is_none());
    }
}

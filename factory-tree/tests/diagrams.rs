//! The diagrams in docs/ceremony.md are drawn from the machines' transition tables. To redraw:
//! `SUPERSCALAR_REDRAW=1 cargo test -p factory-tree --test diagrams`.

use std::fmt::Debug;
use std::fmt::Write as _;
use std::path::Path;

use factory_tree::ceremony::{coordinator, signer};

fn diagram<P: Debug + Copy>(first: P, last: P, table: &[(P, &str, &[P])]) -> String {
    let mut text = format!("```mermaid\nstateDiagram-v2\n    [*] --> {first:?}\n");
    for (from, input, to) in table {
        for to in *to {
            writeln!(text, "    {from:?} --> {to:?}: {input}").unwrap();
        }
    }
    writeln!(text, "    {last:?} --> [*]\n```").unwrap();
    text
}

fn replace(text: &str, name: &str, drawn: &str) -> String {
    let (start, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let from = text.find(&start).expect("the mark is there") + start.len();
    let to = text.find(&end).expect("the end mark is there");
    format!("{}{drawn}{}", &text[..from], &text[to..])
}

#[test]
fn the_documents_diagrams_are_the_machines_tables() {
    use coordinator::Phase;
    use signer::SignerPhase;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ceremony.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let lsp = diagram(Phase::Joining, Phase::Finished, coordinator::TRANSITIONS);
    let client = diagram(
        SignerPhase::Joined,
        SignerPhase::Finished,
        signer::TRANSITIONS,
    );
    let drawn = replace(&text, "coordinator", &lsp);
    let drawn = replace(&drawn, "client", &client);
    if std::env::var_os("SUPERSCALAR_REDRAW").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    assert!(
        text == drawn || std::env::var_os("SUPERSCALAR_REDRAW").is_some(),
        "docs/ceremony.md is out of date"
    );
}

//! How an opening fee is divided among the parts of a payment.

/// What is taken of each part: in proportion, to the thousandth of a satoshi, and always leaving something. Nothing if it cannot be divided so.
pub(crate) fn shares(parts: &[u64], fee: u64) -> Option<Vec<u64>> {
    let total: u128 = parts.iter().copied().map(u128::from).sum();
    let mut left = fee;
    let mut shares = Vec::with_capacity(parts.len());
    for part in parts {
        let share = (u128::from(fee) * u128::from(*part)).checked_div(total)?;
        let share = u64::try_from(share).ok()?.min(left);
        left -= share;
        shares.push(share);
    }
    // What rounding left over, at most one per part.
    for (share, part) in shares.iter_mut().zip(parts) {
        let more = left.min(part.saturating_sub(1).saturating_sub(*share));
        *share += more;
        left -= more;
    }
    let leave_something = shares.iter().zip(parts).all(|(share, part)| share < part);
    (left == 0 && leave_something).then_some(shares)
}

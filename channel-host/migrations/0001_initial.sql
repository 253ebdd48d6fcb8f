-- Everything LDK stores, and this crate's own records of leaves and peers beside it: keys and bytes.
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    space TEXT NOT NULL,
    subspace TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (space, subspace, name)
) STRICT;

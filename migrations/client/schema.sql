CREATE TABLE bonus_places (
    number INTEGER PRIMARY KEY,
    leaf_id BLOB NOT NULL UNIQUE CHECK (length(leaf_id) = 16),
    factory_id BLOB NOT NULL REFERENCES factories (factory_id),
    sale BLOB CHECK (length(sale) = 16)
) STRICT;

CREATE UNIQUE INDEX bonus_places_next ON bonus_places (factory_id) WHERE sale IS NULL;

CREATE TABLE chain_spends (
    outpoint BLOB PRIMARY KEY CHECK (length(outpoint) = 36),
    spender BLOB NOT NULL CHECK (length(spender) = 32),
    height INTEGER NOT NULL
) STRICT;

CREATE INDEX chain_spends_by_height ON chain_spends (height);

CREATE TABLE chain_txs (
    txid BLOB PRIMARY KEY CHECK (length(txid) = 32),
    height INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;

CREATE INDEX chain_txs_by_height ON chain_txs (height);

CREATE TABLE channels (
    leaf_id BLOB PRIMARY KEY CHECK (length(leaf_id) = 16),
    -- Nothing for a channel outside of factories, whose number is its name.
    factory_id BLOB REFERENCES factories (factory_id),
    view TEXT,
    commitment BLOB
) STRICT;

CREATE TABLE declines (
    factory_id BLOB PRIMARY KEY REFERENCES factories (factory_id),
    why TEXT NOT NULL,
    height INTEGER NOT NULL
) STRICT;

CREATE TABLE exits (
    factory_id BLOB PRIMARY KEY REFERENCES factories (factory_id),
    goal TEXT NOT NULL CHECK (goal IN ('leave', 'timeout')),
    sat_per_kwu INTEGER,
    max_fee_sat INTEGER,
    requested_height INTEGER NOT NULL,
    progress TEXT NOT NULL,
    waiting_until INTEGER,
    done_height INTEGER
) STRICT;

CREATE TABLE factories (
    factory_id BLOB PRIMARY KEY CHECK (length(factory_id) = 32),
    ceremony BLOB NOT NULL CHECK (length(ceremony) = 16),
    attempt INTEGER NOT NULL,
    join_nonce BLOB NOT NULL UNIQUE REFERENCES joins (join_nonce),
    funding BLOB NOT NULL UNIQUE CHECK (length(funding) = 36),
    common_pin BLOB NOT NULL CHECK (length(common_pin) = 36),
    capacity_sat INTEGER NOT NULL,
    birth_height INTEGER NOT NULL,
    expiry_height INTEGER NOT NULL,
    confirmations INTEGER NOT NULL,
    -- What was agreed to for it, per month.
    fee_sat INTEGER NOT NULL,
    acked INTEGER NOT NULL CHECK (acked IN (0, 1)),
    failed INTEGER NOT NULL CHECK (failed IN (0, 1)),
    confirmed_height INTEGER,
    usable INTEGER NOT NULL CHECK (usable IN (0, 1)),
    -- Its funding can never confirm: the common pin is spent elsewhere, to depth.
    abandoned_height INTEGER,
    -- Nothing of it is left to be claimed.
    closed_height INTEGER,
    -- The keys of it are being handed over: the gate of its channel is shut (begun), they may have been sent (sent).
    handover TEXT CHECK (handover IN ('begun', 'sent')),
    -- The coordinator has them.
    handed_over_height INTEGER
) STRICT;

CREATE TABLE fee_children (
    txid BLOB PRIMARY KEY CHECK (length(txid) = 32),
    parent BLOB NOT NULL REFERENCES published (txid),
    raw BLOB NOT NULL,
    fee_sat INTEGER NOT NULL,
    sat_per_kwu INTEGER NOT NULL,
    height INTEGER NOT NULL
) STRICT;

CREATE INDEX fee_children_by_parent ON fee_children (parent);

CREATE TABLE identity (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    network TEXT NOT NULL,
    node_id BLOB NOT NULL CHECK (length(node_id) = 33),
    birthday_height INTEGER,
    birthday_hash BLOB CHECK (length(birthday_hash) = 32),
    -- Counts every change that a copy restored from a backup would be missing.
    epoch INTEGER NOT NULL
) STRICT;

CREATE TABLE interest (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    capacity_sat INTEGER NOT NULL,
    note TEXT NOT NULL
) STRICT;

CREATE TABLE invoices (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    description TEXT NOT NULL,
    expires_time INTEGER NOT NULL
) STRICT;

CREATE INDEX invoices_by_expiry ON invoices (expires_time);

CREATE TABLE joins (
    join_nonce BLOB PRIMARY KEY CHECK (length(join_nonce) = 16),
    ceremony BLOB NOT NULL CHECK (length(ceremony) = 16),
    attempt INTEGER NOT NULL,
    leaf_id BLOB NOT NULL UNIQUE CHECK (length(leaf_id) = 16),
    factory_key BLOB NOT NULL UNIQUE CHECK (length(factory_key) = 33),
    channel_key BLOB NOT NULL UNIQUE CHECK (length(channel_key) = 33),
    payout_script BLOB NOT NULL UNIQUE,
    common_pin BLOB NOT NULL CHECK (length(common_pin) = 36),
    capacity_sat INTEGER NOT NULL
) STRICT;

CREATE INDEX joins_by_round ON joins (ceremony, attempt);

CREATE TABLE kits (
    factory_id BLOB PRIMARY KEY REFERENCES factories (factory_id),
    kit BLOB NOT NULL
) STRICT;

CREATE TABLE lightning_route (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    route TEXT NOT NULL
) STRICT;

CREATE TABLE live (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    state TEXT NOT NULL
) STRICT;

CREATE TABLE moves (
    from_factory BLOB PRIMARY KEY REFERENCES factories (factory_id),
    total_msat INTEGER NOT NULL,
    begun_height INTEGER NOT NULL
) STRICT;

CREATE TABLE notices (
    factory_id BLOB PRIMARY KEY REFERENCES factories (factory_id),
    notice TEXT NOT NULL,
    told_height INTEGER NOT NULL
) STRICT;

CREATE TABLE orders (
    order_id TEXT PRIMARY KEY,
    capacity_sat INTEGER NOT NULL,
    fee_msat INTEGER NOT NULL,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    invoice TEXT NOT NULL,
    -- Whether it is to come with the next factory.
    at_birth INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ordered', 'paid', 'from_stock', 'from_birth', 'onchain', 'failed')),
    -- The channel's funding, as the coordinator says it.
    funding TEXT,
    -- What it waits for, or why nothing came of it.
    note TEXT NOT NULL,
    created_time INTEGER NOT NULL,
    ended_time INTEGER
) STRICT;

CREATE TABLE parts (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    from_factory BLOB NOT NULL REFERENCES moves (from_factory),
    to_factory BLOB NOT NULL REFERENCES factories (factory_id),
    -- Over which channels.
    from_leaf BLOB NOT NULL CHECK (length(from_leaf) = 16),
    to_leaf BLOB NOT NULL CHECK (length(to_leaf) = 16),
    -- What is to arrive.
    amount_msat INTEGER NOT NULL,
    -- What the coordinator's payment carries.
    arrival_token BLOB NOT NULL CHECK (length(arrival_token) = 32),
    asked_height INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('asked', 'agreed', 'moved', 'failed')),
    -- What the coordinator said, once it was found good: what our payment carries, costs, and when it expires.
    payment_token BLOB CHECK (length(payment_token) = 32),
    fee_msat INTEGER,
    incoming_expiry INTEGER,
    outgoing_expiry INTEGER,
    -- Why it failed.
    failure TEXT
) STRICT;

CREATE INDEX parts_by_from ON parts (from_factory);

CREATE INDEX parts_by_to ON parts (to_factory);

CREATE TABLE payments (
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    direction TEXT NOT NULL CHECK (direction IN ('in', 'out')),
    amount_msat INTEGER NOT NULL,
    fee_msat INTEGER,
    state TEXT NOT NULL CHECK (state IN ('pending', 'succeeded', 'failed')),
    -- What it was for.
    description TEXT NOT NULL,
    -- Why it failed.
    failure TEXT,
    created_height INTEGER NOT NULL,
    created_time INTEGER NOT NULL,
    ended_height INTEGER,
    ended_time INTEGER,
    PRIMARY KEY (hash, direction)
) STRICT;

CREATE TABLE payouts (
    outpoint BLOB PRIMARY KEY CHECK (length(outpoint) = 36),
    join_nonce BLOB NOT NULL REFERENCES joins (join_nonce),
    sat INTEGER NOT NULL,
    height INTEGER NOT NULL
) STRICT;

CREATE TABLE pending_sales (
    sale BLOB PRIMARY KEY CHECK (length(sale) = 16),
    factory_id BLOB NOT NULL REFERENCES factories (factory_id),
    pending TEXT NOT NULL
) STRICT;

CREATE INDEX pending_sales_by_factory ON pending_sales (factory_id);

CREATE TABLE published (
    txid BLOB PRIMARY KEY CHECK (length(txid) = 32),
    factory_id BLOB NOT NULL REFERENCES factories (factory_id),
    kind TEXT NOT NULL,
    vbytes INTEGER NOT NULL,
    first_height INTEGER NOT NULL
) STRICT;

CREATE TABLE purchases (
    sale BLOB PRIMARY KEY CHECK (length(sale) = 16),
    factory_id BLOB NOT NULL REFERENCES factories (factory_id),
    nonce BLOB NOT NULL UNIQUE CHECK (length(nonce) = 16),
    leaf_id BLOB NOT NULL UNIQUE CHECK (length(leaf_id) = 16),
    channel_key BLOB NOT NULL UNIQUE CHECK (length(channel_key) = 33),
    -- The quote as it was signed, and the coordinator's signature on it.
    quote TEXT NOT NULL,
    signature TEXT NOT NULL,
    -- Whether the user accepts to hold more than is covered.
    consent INTEGER NOT NULL CHECK (consent IN (0, 1)),
    -- Whether the wallet bought it by itself.
    automatic INTEGER NOT NULL CHECK (automatic IN (0, 1)),
    -- What the coordinator answered, once it was found good.
    hash BLOB CHECK (length(hash) = 32),
    invoice TEXT,
    state TEXT NOT NULL CHECK (state IN ('ordered', 'paid', 'sold', 'settled', 'cancelled')),
    -- What it waits for, or why nothing came of it.
    note TEXT NOT NULL,
    created_time INTEGER NOT NULL,
    ended_time INTEGER
) STRICT;

CREATE TABLE refused_sales (
    factory_id BLOB PRIMARY KEY REFERENCES factories (factory_id),
    found TEXT NOT NULL,
    height INTEGER NOT NULL
) STRICT;

CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request TEXT NOT NULL,
    answer TEXT
) STRICT;

CREATE TABLE signed_records (
    outpoint BLOB NOT NULL CHECK (length(outpoint) = 36),
    purpose TEXT NOT NULL,
    sighash BLOB NOT NULL CHECK (length(sighash) = 32),
    own_nonce BLOB NOT NULL CHECK (length(own_nonce) = 66),
    sum BLOB NOT NULL CHECK (length(sum) = 66),
    partial BLOB NOT NULL CHECK (length(partial) = 32),
    PRIMARY KEY (outpoint, purpose)
) STRICT, WITHOUT ROWID;

CREATE TABLE wallet_changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    change TEXT NOT NULL
) STRICT;

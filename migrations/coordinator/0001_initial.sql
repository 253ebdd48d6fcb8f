-- The coordinator's first schema. Ids, keys and transaction ids are blobs (transaction ids in internal byte order), amounts
-- satoshi, times block heights. Large things that are only read whole (specifications, signatures) are one blob each.

-- Whose database this is: network and node id. One row.
CREATE TABLE owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    network TEXT NOT NULL,
    node_id BLOB NOT NULL
) STRICT;

-- The on-chain wallet: change sets (JSON) that add up in order.
CREATE TABLE wallet_change (
    id INTEGER PRIMARY KEY,
    change BLOB NOT NULL
) STRICT;

-- The blocks that were taken into account, newest ones only: a block is taken into account once.
CREATE TABLE block (
    height INTEGER PRIMARY KEY,
    hash BLOB NOT NULL
) STRICT;

-- Accounts, with their reputation: a score that halves with time, as of score_height.
CREATE TABLE client (
    client BLOB PRIMARY KEY,
    software TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    hours INTEGER NOT NULL DEFAULT 0, -- of the day (24 of six blocks) in which it connected, one bit each
    silent INTEGER NOT NULL DEFAULT 0,
    guilty INTEGER NOT NULL DEFAULT 0,
    score REAL NOT NULL DEFAULT 0,
    score_height INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Ceremonies. `wish` is what the operator asked for, `terms` (JSON) what clients are offered, once coins are pinned.
CREATE TABLE ceremony (
    number INTEGER PRIMARY KEY,
    ceremony BLOB NOT NULL UNIQUE,
    created_height INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('gathering', 'running', 'complete', 'failed')),
    wish TEXT NOT NULL,
    terms TEXT,
    reason TEXT
) STRICT;

-- Coins that belong to a ceremony's funding, in all its attempts. Free again when the row is gone.
CREATE TABLE pin (
    txid BLOB NOT NULL,
    vout INTEGER NOT NULL,
    ceremony BLOB NOT NULL REFERENCES ceremony (ceremony),
    place INTEGER NOT NULL, -- place 0 is common to all attempts
    sat INTEGER NOT NULL,
    script BLOB NOT NULL,
    PRIMARY KEY (txid, vout)
) STRICT, WITHOUT ROWID;
CREATE INDEX pin_ceremony ON pin (ceremony);

-- Attempts. `fresh` is the randomness of our keys of this attempt, drawn and stored before any is used.
CREATE TABLE attempt (
    ceremony BLOB NOT NULL REFERENCES ceremony (ceremony),
    attempt INTEGER NOT NULL,
    fresh BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('drawn', 'invited', 'proposed', 'completed', 'ready', 'funding_signed', 'failed')),
    invited TEXT, -- JSON: clients and capacities
    left_out TEXT, -- JSON: clients and why
    reason TEXT,
    PRIMARY KEY (ceremony, attempt)
) STRICT, WITHOUT ROWID;

-- Every leaf id and key a client ever joined with: none serves twice (protocol.md, I11).
CREATE TABLE used (
    leaf_id BLOB PRIMARY KEY,
    factory_key BLOB NOT NULL UNIQUE,
    channel_key BLOB NOT NULL UNIQUE,
    payout_script BLOB NOT NULL UNIQUE,
    ceremony BLOB NOT NULL,
    attempt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Factories, from the proposal on.
CREATE TABLE factory (
    number INTEGER PRIMARY KEY,
    factory BLOB NOT NULL UNIQUE,
    ceremony BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('proposed', 'completed', 'ready', 'funding_signed', 'failed')),
    spec BLOB NOT NULL, -- JSON
    funding_tx BLOB NOT NULL, -- unsigned
    funding_txid BLOB NOT NULL,
    funding_vout INTEGER NOT NULL,
    funding_sat INTEGER NOT NULL,
    clients INTEGER NOT NULL,
    capacity_sat INTEGER NOT NULL,
    birth_height INTEGER NOT NULL,
    expiry_height INTEGER NOT NULL,
    confirmations INTEGER NOT NULL,
    signatures BLOB, -- 64 bytes each, in the order of the tree's transactions
    client_channel_signatures BLOB, -- 64 bytes each, leaf order
    lsp_channel_signatures BLOB,
    signed_tx BLOB, -- the funding transaction, once it is signed
    confirmed_height INTEGER,
    usable INTEGER NOT NULL DEFAULT 0, -- whether it is buried as deep as agreed
    loss_sat INTEGER, -- the largest loss that was reported
    forgotten INTEGER NOT NULL DEFAULT 0, -- whether everything of it is spent and buried
    FOREIGN KEY (ceremony, attempt) REFERENCES attempt (ceremony, attempt)
) STRICT;
CREATE INDEX factory_round ON factory (ceremony, attempt);
CREATE INDEX factory_state ON factory (state);

-- Who is in which factory.
CREATE TABLE member (
    client BLOB NOT NULL,
    factory BLOB NOT NULL REFERENCES factory (factory),
    position INTEGER NOT NULL,
    capacity_sat INTEGER NOT NULL,
    leaf_id BLOB NOT NULL UNIQUE, -- of its channel
    fee_sat INTEGER NOT NULL DEFAULT 0, -- agreed to with the invitation, taken once when its balance moves in
    fee_taken INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, -- invitations to younger factories in the dying days
    rung INTEGER, -- the last one was to this rung
    warned TEXT CHECK (warned IN ('early', 'dying', 'last_day', 'over')), -- the loudest notice it was sent
    PRIMARY KEY (client, factory)
) STRICT, WITHOUT ROWID;

-- What clients that have left a factory handed over: their secret keys there, masked for our factory key, so that only the seed opens them.
CREATE TABLE handover (
    leaf_id BLOB PRIMARY KEY REFERENCES member (leaf_id),
    factory BLOB NOT NULL REFERENCES factory (factory),
    position INTEGER NOT NULL,
    height INTEGER NOT NULL,
    factory_key BLOB NOT NULL,
    payout_key BLOB NOT NULL,
    channel_key BLOB NOT NULL,
    sold_keys BLOB NOT NULL -- 32 bytes each, in the order of the sales
) STRICT, WITHOUT ROWID;
CREATE INDEX handover_factory ON handover (factory, position);

-- Where the ladder begins. One row, once it is enabled.
CREATE TABLE ladder (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    first_height INTEGER NOT NULL
) STRICT;

-- Leaves, of birth or bought, whose path is to be published until it is buried.
CREATE TABLE exit (
    leaf_id BLOB PRIMARY KEY,
    factory BLOB NOT NULL REFERENCES factory (factory),
    position INTEGER NOT NULL,
    wished_height INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX exit_member ON exit (factory, position);

-- Lightning payments of our own: in and out, not through.
CREATE TABLE payment (
    hash BLOB PRIMARY KEY,
    direction TEXT NOT NULL CHECK (direction IN ('in', 'out')),
    state TEXT NOT NULL CHECK (state IN ('pending', 'succeeded', 'failed')),
    msat INTEGER NOT NULL,
    fee_msat INTEGER NOT NULL,
    text TEXT NOT NULL,
    created_height INTEGER NOT NULL,
    ended_height INTEGER
) STRICT, WITHOUT ROWID;

-- Signed statements that a client sent an invalid signature.
CREATE TABLE blame (
    number INTEGER PRIMARY KEY,
    ceremony BLOB NOT NULL,
    attempt INTEGER NOT NULL,
    client BLOB NOT NULL,
    height INTEGER NOT NULL,
    evidence TEXT NOT NULL, -- JSON
    signature BLOB NOT NULL -- BIP-340, by the node key
) STRICT;

-- Outputs of funded factories that are on the chain: the funding output, and those of published transactions.
CREATE TABLE output (
    txid BLOB NOT NULL,
    vout INTEGER NOT NULL,
    factory BLOB NOT NULL REFERENCES factory (factory),
    kind TEXT NOT NULL,
    sat INTEGER NOT NULL,
    confirmed_height INTEGER NOT NULL,
    spent_height INTEGER,
    spent_by BLOB,
    PRIMARY KEY (txid, vout)
) STRICT, WITHOUT ROWID;
CREATE INDEX output_factory ON output (factory);
CREATE INDEX output_confirmed ON output (confirmed_height);
CREATE INDEX output_spent ON output (spent_height);

-- Our transactions that take back what is ours from a factory.
CREATE TABLE sweep (
    number INTEGER PRIMARY KEY,
    txid BLOB NOT NULL UNIQUE,
    factory BLOB NOT NULL REFERENCES factory (factory),
    tx BLOB NOT NULL,
    sat INTEGER NOT NULL, -- what arrives in the wallet
    created_height INTEGER NOT NULL,
    confirmed_height INTEGER,
    dead INTEGER NOT NULL DEFAULT 0 -- an input was spent otherwise
) STRICT;

-- What happened to clients, for their history.
CREATE TABLE history (
    number INTEGER PRIMARY KEY,
    client BLOB NOT NULL,
    height INTEGER NOT NULL,
    kind TEXT NOT NULL,
    ceremony BLOB,
    attempt INTEGER,
    factory BLOB,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX history_client ON history (client, number);

-- Where clients that are away are reached (LSPS5).
CREATE TABLE webhook (
    client BLOB NOT NULL,
    app_name TEXT NOT NULL,
    url TEXT NOT NULL, -- may hold a secret of the client's: not for logs
    PRIMARY KEY (client, app_name)
) STRICT, WITHOUT ROWID;

-- What a webhook is told while its client is away; one per cause. Times are Unix times.
CREATE TABLE wake (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    client BLOB NOT NULL,
    app_name TEXT NOT NULL,
    cause TEXT NOT NULL,
    body TEXT NOT NULL, -- the notification, JSON
    asked_at INTEGER NOT NULL,
    until INTEGER NOT NULL, -- not sent any more after this
    tries INTEGER NOT NULL DEFAULT 0,
    next_at INTEGER, -- none when it is over
    UNIQUE (client, app_name, cause),
    FOREIGN KEY (client, app_name) REFERENCES webhook (client, app_name) ON DELETE CASCADE
) STRICT;
CREATE INDEX wake_next ON wake (next_at);

-- Channels sold just in time (LSPS2). Times are Unix time; the numbers of orders and channels are 64 bits with a sign.
CREATE TABLE jit_order (
    number INTEGER PRIMARY KEY,
    scid INTEGER NOT NULL UNIQUE, -- what payments for it name
    client BLOB NOT NULL,
    payment_msat INTEGER, -- none: one payment of any size
    min_fee_msat INTEGER NOT NULL, -- the promise
    fee_ppm INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    min_lifetime INTEGER NOT NULL, -- blocks its funding has to be deep before we close its channel
    client_trusts_lsp INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    state TEXT NOT NULL, -- sold, opening, open, paid, closed
    opens INTEGER NOT NULL DEFAULT 0,
    opened_at INTEGER, -- the last time
    paid_at INTEGER,
    fee_msat INTEGER, -- of the payment that came, by the promise
    taken_msat INTEGER NOT NULL DEFAULT 0,
    capacity_sat INTEGER,
    channel INTEGER,
    funding BLOB,
    sale BLOB, -- from a stock, by this sale, and not from the chain
    onchain_sat INTEGER NOT NULL DEFAULT 0, -- what the funding costs; an estimate until it is known
    problem TEXT NOT NULL DEFAULT '' -- why the last payment was sent back
) STRICT;
CREATE INDEX jit_order_client ON jit_order (client);
CREATE INDEX jit_order_channel ON jit_order (channel);
CREATE INDEX jit_order_opened ON jit_order (opened_at);

-- Channels ordered in advance (LSPS1). Times are Unix time where they are not heights; the numbers of channels are 64 bits with a sign.
CREATE TABLE lsps1_order (
    number INTEGER PRIMARY KEY,
    order_id TEXT NOT NULL UNIQUE,
    client BLOB NOT NULL,
    lsp_balance_sat INTEGER NOT NULL,
    confirmations INTEGER NOT NULL,
    confirm_within INTEGER NOT NULL,
    expiry_blocks INTEGER NOT NULL,
    announce INTEGER NOT NULL,
    at_birth INTEGER NOT NULL, -- whether it comes with the next factory
    fee_sat INTEGER NOT NULL, -- the price, promised
    hash BLOB NOT NULL UNIQUE, -- of the payment
    invoice TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    valid_until INTEGER NOT NULL, -- when it must be paid
    state TEXT NOT NULL CHECK (state IN ('ordered', 'held', 'open', 'paid', 'failed')),
    held_at INTEGER, -- since when the client is waited for
    held_until INTEGER, -- height at which the held payment expires
    opens INTEGER NOT NULL DEFAULT 0,
    opened_at INTEGER, -- the last time
    channel INTEGER, -- of the last try
    ceremony BLOB, -- in which its client has a place for it
    onchain_sat INTEGER NOT NULL DEFAULT 0, -- what the funding costs; an estimate until it is known
    funding_txid BLOB,
    funding_vout INTEGER,
    funded_at INTEGER,
    taken_msat INTEGER NOT NULL DEFAULT 0, -- what was taken of the payment
    ended_at INTEGER,
    note TEXT NOT NULL DEFAULT '' -- what it waits for, or why nothing came of it
) STRICT;
CREATE INDEX lsps1_order_channel ON lsps1_order (channel);
CREATE INDEX lsps1_order_client ON lsps1_order (client);
CREATE INDEX lsps1_order_opened ON lsps1_order (opened_at);
CREATE INDEX lsps1_order_state ON lsps1_order (state);

-- Sales from stocks (protocol.md section 6): every order that took a quote. Its transactions follow from the stock and the terms.
CREATE TABLE sale (
    number INTEGER PRIMARY KEY,
    sale BLOB NOT NULL UNIQUE,
    client BLOB NOT NULL, -- the buyer
    factory BLOB NOT NULL REFERENCES factory (factory),
    position INTEGER NOT NULL, -- the buyer's
    stock_txid BLOB NOT NULL,
    stock_vout INTEGER NOT NULL,
    place INTEGER NOT NULL, -- which sale of that stock, from 1
    leaf_id BLOB NOT NULL UNIQUE, -- of the new channel
    channel_key BLOB NOT NULL UNIQUE, -- the buyer's
    fresh BLOB NOT NULL, -- the randomness of our key of it, drawn before it is used
    capacity_sat INTEGER NOT NULL,
    fee_msat INTEGER NOT NULL,
    quote TEXT NOT NULL, -- as it was signed
    sign_until INTEGER NOT NULL, -- height
    hash BLOB NOT NULL UNIQUE, -- of the payment
    invoice TEXT NOT NULL, -- empty where another order pays
    jit INTEGER, -- the scid of the just-in-time order, if that is one
    lsps1 TEXT, -- the id of the order of a channel, if that is one
    state TEXT NOT NULL CHECK (state IN ('ordered', 'paid', 'sold', 'settled', 'cancelled')),
    held_until INTEGER, -- height at which the held payment expires, or that we hold it for if that is sooner
    attempts INTEGER NOT NULL DEFAULT 0,
    bound TEXT, -- JSON: the terms, once a client may have signed them
    chain BLOB, -- our complete signature of the chain transaction
    sold TEXT, -- JSON: everything that was signed, once it is complete
    delivered INTEGER NOT NULL DEFAULT 0, -- whether every client of the stock has it in its exit kit
    taken_msat INTEGER NOT NULL DEFAULT 0, -- what was taken of the payment
    ordered_at INTEGER NOT NULL, -- Unix time
    ended_at INTEGER,
    note TEXT NOT NULL DEFAULT '' -- what it waits for, or why nothing came of it
) STRICT;
CREATE INDEX sale_factory ON sale (factory);
CREATE INDEX sale_client ON sale (client);
CREATE INDEX sale_state ON sale (state);
CREATE INDEX sale_jit ON sale (jit);
CREATE INDEX sale_lsps1 ON sale (lsps1);

-- Where clients want channels for signing with others who buy: the next of each (no sale yet), and those that sales make.
CREATE TABLE bonus (
    leaf_id BLOB PRIMARY KEY,
    channel_key BLOB NOT NULL UNIQUE, -- the client's; ours is of the sale's randomness, and of this leaf
    client BLOB NOT NULL,
    factory BLOB NOT NULL REFERENCES factory (factory),
    position INTEGER NOT NULL,
    sale BLOB REFERENCES sale (sale),
    capacity_sat INTEGER, -- once there is a sale
    acked INTEGER NOT NULL DEFAULT 0 -- whether its client has that sale in its exit kit
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX bonus_next ON bonus (factory, position) WHERE sale IS NULL;
CREATE INDEX bonus_sale ON bonus (sale);

-- Every channel of a signed sale, the buyer's and those of the others; paid: it may carry payments. That of another than the buyer, whom it costs
-- nothing, as soon as its client can enforce it.
CREATE VIEW sold_channel AS
    SELECT sale, client, factory, position, place, leaf_id, channel_key, capacity_sat, state = 'settled' AS paid
    FROM sale WHERE sold IS NOT NULL
    UNION ALL SELECT b.sale, b.client, b.factory, b.position, s.place, b.leaf_id, b.channel_key, b.capacity_sat,
    b.acked OR s.ended_at IS NOT NULL
    FROM bonus b JOIN sale s USING (sale) WHERE s.sold IS NOT NULL;

-- What liquidity costs: one row for everybody (no client), and those for single clients. The configuration says it where there is none.
CREATE TABLE price (
    client BLOB UNIQUE,
    price TEXT NOT NULL -- JSON
) STRICT;

-- What we kept of payments that went through us, by day (the Unix time it begins at).
CREATE TABLE routing (
    day INTEGER PRIMARY KEY,
    fee_msat INTEGER NOT NULL
) STRICT;

-- Those that were counted lately: the node may tell of each again.
CREATE TABLE forward (
    number BLOB PRIMARY KEY, -- a hash over the HTLCs that brought it
    at INTEGER NOT NULL -- Unix time
) STRICT, WITHOUT ROWID;
CREATE INDEX forward_at ON forward (at);

//! Two leaves of one client, and a part between them.

use std::sync::Arc;

use anyhow::Result;
use channel_host::{LeafId, MovePart, Msat, NodeEvent, PartState};
use scenarios::bitcoind::Bitcoind;

use crate::lightning::harness::{EXIT_DELAY, Member, Unborn, paid_pair, pair, pay_client, until};

/// A client with some of its money in an old leaf, and a new leaf that is empty.
pub struct Move {
    pub node: Arc<Bitcoind>,
    pub lsp: Member,
    pub client: Member,
    pub old: Unborn,
    pub new: Unborn,
}

/// Blocks that a dying factory has left, fewer than a part's payment in may be locked for.
const LEFT: u32 = 400;
/// What an odd amount ends with.
const ODD: u64 = 10_000_123;
/// Two hundred thousand satoshis, and an odd rest.
pub const BALANCE: Msat = Msat(200_000_000 + ODD);

pub async fn moving() -> Result<Move> {
    let (node, lsp, client, old) = paid_pair().await?;
    set_up(node, lsp, client, old).await
}

/// With an old factory that ends sooner than a part's payment in expires.
pub async fn dying() -> Result<Move> {
    let (node, mut lsp, mut client) = pair().await?;
    let mut old = Unborn::new(&lsp, &client)?;
    let end = node.height()? + LEFT;
    (old.lsp.last_expiry, old.client.last_expiry) = (end, end);
    lsp.synced().await?;
    client.synced().await?;
    old.open(&mut lsp, &mut client).await?;
    old.ungate([&lsp, &client])?;
    pay_client(&mut lsp, &mut client, BALANCE.0 - ODD).await?;
    set_up(node, lsp, client, old).await
}

async fn set_up(
    node: Arc<Bitcoind>,
    mut lsp: Member,
    mut client: Member,
    old: Unborn,
) -> Result<Move> {
    pay_client(&mut lsp, &mut client, ODD).await?;
    let new = Unborn::new(&lsp, &client)?;
    lsp.synced().await?;
    client.synced().await?;
    new.open(&mut lsp, &mut client).await?;
    new.ungate([&lsp, &client])?;
    let all = Move {
        node,
        lsp,
        client,
        old,
        new,
    };
    all.idle().await?;
    Ok(all)
}

impl Move {
    /// What the client could send over each leaf, while its channel is there.
    pub fn balance(&self, leaf: &Unborn) -> Result<Msat> {
        Ok(self.client.node().leaf_balance(leaf.id)?.spendable)
    }

    /// Waits until nothing is on its way.
    pub async fn idle(&self) -> Result<()> {
        until("idle channels", || {
            let sides = [&self.lsp, &self.client];
            let channels = sides.into_iter().flat_map(|side| side.node().channels());
            Ok(channels.map(|channel| channel.pending).sum::<usize>() == 0)
        })
        .await
    }

    /// Waits until both channels can be used from both sides.
    pub async fn usable(&self) -> Result<()> {
        self.lsp.usable(2).await?;
        self.client.usable(2).await
    }

    /// The next part, as the coordinator would agree to it: as tight as it may be.
    pub fn terms(&self, amount: Msat, fee: Msat) -> Result<MovePart> {
        let (from, to) = (self.old.id, self.new.id);
        let (hash, to_secret) = self.client.node().expect_part(from, to, amount)?;
        let outgoing_expiry = self.node.height()? + EXIT_DELAY + 144;
        Ok(MovePart {
            hash,
            from,
            to,
            incoming: Msat(amount.0 + fee.0),
            outgoing: amount,
            incoming_expiry: outgoing_expiry + 2 * EXIT_DELAY + 72,
            outgoing_expiry,
            to_secret,
        })
    }

    /// Both agree, and the client pays.
    pub fn send(&self, part: &MovePart) -> Result<()> {
        let secret = self.lsp.node().take_part(part.clone())?;
        let client = self.client.node();
        client.send_part(part.hash, part.incoming, secret, part.incoming_expiry)?;
        Ok(())
    }

    /// Moves one part, and waits until both sides say so.
    pub async fn move_part(&mut self, amount: Msat, fee: Msat) -> Result<()> {
        let part = self.terms(amount, fee)?;
        self.send(&part)?;
        for side in [&mut self.client, &mut self.lsp] {
            assert_eq!(end(side, &part).await?, Ok(()));
        }
        Ok(())
    }
}

/// How a part ended, as one side tells it. No ordinary payment of its hash is ever told of.
pub async fn end(side: &mut Member, part: &MovePart) -> Result<Result<(), String>> {
    side.event(|event| ending(event, part)).await
}

pub fn ending(event: &NodeEvent, part: &MovePart) -> Option<Result<(), String>> {
    match event {
        NodeEvent::PartMoved {
            hash,
            from,
            to,
            amount,
            fee,
        } if *hash == part.hash => {
            assert_eq!((*from, *to), (part.from, part.to));
            assert_eq!(*amount, part.outgoing);
            assert_eq!(fee.0, part.incoming.0 - part.outgoing.0);
            Some(Ok(()))
        }
        NodeEvent::PartFailed { hash, why, .. } if *hash == part.hash => Some(Err(why.clone())),
        NodeEvent::PaymentReceived { hash, .. }
        | NodeEvent::PaymentHeld { hash, .. }
        | NodeEvent::PaymentRefused { hash, .. }
        | NodeEvent::PaymentSent { hash, .. }
        | NodeEvent::PaymentFailed { hash, .. } => {
            assert_ne!(*hash, part.hash, "{event:?}");
            None
        }
        _ => None,
    }
}

/// How far a part is on one side, if it is not over.
pub fn state(side: &Member, part: &MovePart) -> Option<PartState> {
    let parts = side.node().parts().into_iter();
    let mut parts = parts.filter(|known| known.hash == part.hash);
    parts.next().map(|known| known.state)
}

/// What pending payments a leaf's channel has for one side.
pub fn pending(side: &Member, leaf: LeafId) -> usize {
    let channels = side.node().channels().into_iter();
    let of_leaf = channels.filter(|channel| channel.leaf == Some(leaf));
    of_leaf.map(|channel| channel.pending).sum()
}

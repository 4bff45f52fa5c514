//! `KV.MEMBER`: who belongs to the groups.
//!
//! A request says how the membership should be, and changes what is not so yet: asked again, after whatever failure, it
//! does the rest. It is made with the version of the membership that it was made for, so that nothing is done twice and
//! nothing of another operator is undone.

use std::time::Duration;

use paxos::{
    Change, ChangeError, ChangeRejection, ClusterId, Membership, NodeId, ReadError, Role,
    node::{Group, Read},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Shared,
    admin::{Options, Outcome, Reason, node_id},
    status::member_reports,
};
use crate::{
    is_address,
    machine::operations as op,
    resp::{Args, is},
    together::all,
};

/// The pause before a change is tried again that came at a bad moment.
const PAUSE: Duration = Duration::from_millis(50);

/// How an operator wants a membership to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Member {
        node: NodeId,
        address: String,
    },
    /// As a member, but for a node that was removed: this is what a node asks for itself.
    Enrolled {
        node: NodeId,
        address: String,
        cluster: ClusterId,
    },
    Voter {
        node: NodeId,
    },
    Learner {
        node: NodeId,
    },
    Gone {
        node: NodeId,
    },
    Replaced {
        node: NodeId,
        by: NodeId,
        address: String,
    },
    At {
        node: NodeId,
        address: String,
    },
}

/// Why a wish cannot be fulfilled.
type Refusal = (Reason, String);

impl Wish {
    /// Reads `ADD id address`, `ENROL id address cluster`, `PROMOTE id`, `DEMOTE id`, `REMOVE id`, `REPLACE id by address`, `UPDATE id address`, and
    /// says where the options begin.
    fn parse(args: Args<'_>) -> Result<(Self, usize), String> {
        let sub = args.get(1);
        let node = || node_id(args.get(2));
        let address = |at: usize| {
            let text = String::from_utf8(args.get(at).to_vec()).unwrap_or_default();
            if is_address(&text) {
                Ok(text)
            } else {
                Err("ERR an address is host:port, where the node talks to the other nodes".to_owned())
            }
        };
        if is(sub, "ADD") {
            let (node, address) = (node()?, address(3)?);
            Ok((Self::Member { node, address }, 4))
        } else if is(sub, "ENROL") {
            let (node, address, cluster) = (node()?, address(3)?, cluster_id(args.get(4))?);
            let wish = Self::Enrolled {
                node,
                address,
                cluster,
            };
            Ok((wish, 5))
        } else if is(sub, "UPDATE") {
            let (node, address) = (node()?, address(3)?);
            Ok((Self::At { node, address }, 4))
        } else if is(sub, "REPLACE") {
            let (node, by, address) = (node()?, node_id(args.get(3))?, address(4)?);
            Ok((Self::Replaced { node, by, address }, 5))
        } else if is(sub, "PROMOTE") {
            Ok((Self::Voter { node: node()? }, 3))
        } else if is(sub, "DEMOTE") {
            Ok((Self::Learner { node: node()? }, 3))
        } else if is(sub, "REMOVE") {
            Ok((Self::Gone { node: node()? }, 3))
        } else {
            Err("ERR unknown subcommand. Try LIST, ADD, PROMOTE, DEMOTE, REMOVE, REPLACE or UPDATE.".into())
        }
    }

    /// The change that fulfils the wish; `None` if it is fulfilled.
    fn change(&self, now: &Membership) -> Result<Option<Change>, Refusal> {
        let role = |node: NodeId| now.member(node).map(|member| member.role);
        let no_such = |node: NodeId| {
            let why = format!("node {node} is not a member; see 'kvstore member list'");
            Err((Reason::NotFound, why))
        };
        match *self {
            Self::Enrolled { node, .. } if now.member(node).is_none() && now.removed.contains(&node) => {
                Err((
                    Reason::Removed,
                    format!(
                        "node {node} was removed; to take it in again: kvstore member add {node}=host:port; a node that \
                     takes its place gets another id"
                    ),
                ))
            }
            Self::Member { node, ref address }
            | Self::Enrolled {
                node, ref address, ..
            } => match now.member(node) {
                None => Ok(Some(Change::AddLearner {
                    node,
                    address: address.clone(),
                })),
                Some(member) if member.address == *address => Ok(None),
                Some(member) => Err((
                    Reason::Refused,
                    format!(
                        "node {node} is a member already, at {}; if it has moved: kvstore member update {node}={address}",
                        member.address
                    ),
                )),
            },
            Self::Voter { node } => match role(node) {
                None => no_such(node),
                Some(Role::Voter) => Ok(None),
                Some(Role::Learner) => Ok(Some(Change::Promote { node })),
            },
            Self::Learner { node } => match role(node) {
                None => no_such(node),
                Some(Role::Learner) => Ok(None),
                Some(Role::Voter) => Ok(Some(Change::Demote { node })),
            },
            Self::Gone { node } => match role(node) {
                None if now.removed.contains(&node) => Ok(None),
                None => no_such(node),
                Some(_) => Ok(Some(Change::Remove { node })),
            },
            Self::Replaced {
                node,
                by,
                ref address,
            } => match (role(node), role(by)) {
                (None, Some(Role::Voter)) if now.removed.contains(&node) => Ok(None),
                // The exchange gives the new node the old one's role: this looks like a removal, or like a learner's exchange.
                (None, Some(Role::Learner)) if now.removed.contains(&node) => Err((
                    Reason::Refused,
                    format!(
                        "node {node} is gone already and node {by} does not vote; to let it vote: kvstore member promote {by} \
                         --wait; if node {node} did not vote either, nothing is left to do"
                    ),
                )),
                (None, _) => no_such(node),
                // It was promoted meanwhile.
                (Some(_), Some(Role::Voter)) => Ok(Some(Change::Remove { node })),
                (Some(_), _) => Ok(Some(Change::Replace {
                    node,
                    by,
                    address: address.clone(),
                })),
            },
            Self::At { node, ref address } => match now.member(node) {
                None => no_such(node),
                Some(member) if member.address == *address => Ok(None),
                Some(_) => Ok(Some(Change::SetAddress {
                    node,
                    address: address.clone(),
                })),
            },
        }
    }
}

fn cluster_id(arg: &[u8]) -> Result<ClusterId, String> {
    let text = str::from_utf8(arg).ok();
    text.and_then(|text| u64::from_str_radix(text, 16).ok())
        .map(ClusterId)
        .ok_or_else(|| "ERR a cluster's id is a hexadecimal number".to_owned())
}

/// `KV.MEMBER LIST [GROUP n]`, and the wishes `[GROUP n] [FORCE]`
pub(super) async fn member(shared: &Shared, args: Args<'_>) -> Result<Vec<Outcome>, String> {
    if is(args.get(1), "LIST") {
        let groups = Options::parse(args, 2)?.groups(shared)?;
        return Ok(all(groups.into_iter().map(list)).await);
    }
    let (wish, options_at) = Wish::parse(args)?;
    let own = shared.settings.cluster_id;
    if let Wish::Enrolled { cluster, .. } = wish
        && cluster != own
    {
        return Err(format!("ERR this node belongs to cluster {own}, not {cluster}"));
    }
    let options = Options::parse(args, options_at)?;
    let groups = options.groups(shared)?;
    let deadline = Instant::now() + shared.settings.request_timeout;
    let fulfilled = groups
        .into_iter()
        .map(|group| fulfil(group, &wish, options.force, deadline));
    Ok(all(fulfilled).await)
}

async fn list(group: &Group) -> Outcome {
    let status = group.status().await;
    let membership = &status.replica.membership;
    if membership.version == 0 {
        return not_joined(group);
    }
    Outcome {
        ok: true,
        version: Some(membership.version),
        members: member_reports(group, &status.replica),
        ..Outcome::of(group)
    }
}

fn not_joined(group: &Group) -> Outcome {
    let why = "this node has not joined the group yet; ask another one";
    Outcome::refused(group, Reason::NoLeader, why)
}

/// Changes the membership until it is as wished, or something is against it.
async fn fulfil(group: &Group, wish: &Wish, force: bool, deadline: Instant) -> Outcome {
    let mut changed = false;
    loop {
        // What this node knows must not be older than what others were told already.
        let asked = super::wide::encoded(op::SIZES, &[]);
        let known = timeout_at(deadline, group.query(Read::Linearizable, asked)).await;
        if let Err(error) = known.unwrap_or(Err(ReadError::Expired)) {
            return Outcome::refused(group, Reason::NoLeader, format!("no leader answers: {error}"));
        }
        let now = group.membership().borrow().clone();
        if now.version == 0 {
            return not_joined(group);
        }
        let change = match wish.change(&now) {
            Ok(Some(change)) => change,
            Ok(None) => return done(group, &now, changed),
            Err((reason, why)) => return Outcome::refused(group, reason, why),
        };
        let changed_to = group.change_membership(now.version, vec![change], force);
        let error = match timeout_at(deadline, changed_to).await {
            Ok(Ok(membership)) => return done(group, &membership, true),
            Ok(Err(error)) => error,
            Err(_) => ChangeError::Unknown,
        };
        // If it happened, it was this request that did it, as a rule.
        changed |= error == ChangeError::Unknown;
        if !passes(&error) || Instant::now() + PAUSE >= deadline {
            return Outcome::refused(group, reason(&error), error.to_string());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn done(group: &Group, membership: &Membership, changed: bool) -> Outcome {
    Outcome {
        ok: true,
        changed: Some(changed),
        version: Some(membership.version),
        ..Outcome::of(group)
    }
}

/// Whether the same may do in a moment.
fn passes(error: &ChangeError) -> bool {
    matches!(
        error,
        ChangeError::Unknown
            | ChangeError::Overloaded { .. }
            | ChangeError::Refused(
                ChangeRejection::VersionMismatch { .. }
                    | ChangeRejection::UnderWay
                    | ChangeRejection::NotReady
                    | ChangeRejection::NoLeader
            )
    )
}

fn reason(error: &ChangeError) -> Reason {
    match error {
        ChangeError::Unknown => Reason::Unknown,
        ChangeError::Overloaded { .. } => Reason::Busy,
        ChangeError::Refused(rejection) => match rejection {
            ChangeRejection::NoLeader => Reason::NoLeader,
            ChangeRejection::Unreachable { .. } => Reason::Unreachable,
            ChangeRejection::Behind { .. } => Reason::Behind,
            ChangeRejection::NoSuchMember { .. } => Reason::NotFound,
            other if passes(&ChangeError::Refused(other.clone())) => Reason::Busy,
            _ => Reason::Refused,
        },
        _ => Reason::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paxos::Member;

    fn parsed(words: &str) -> Result<(Wish, usize), String> {
        let mut buffer = format!("{words}\r\n").into_bytes();
        let mut parser = crate::resp::Parser::default();
        parser.parse(&mut buffer).unwrap();
        Wish::parse(parser.command(0, &buffer))
    }

    #[test]
    fn wishes_are_read_and_bad_ones_are_named() {
        let (node, address) = (NodeId(4), "host:7104".to_owned());
        assert_eq!(
            parsed("KV.MEMBER add 4 host:7104"),
            Ok((Wish::Member { node, address }, 4))
        );
        let (address, cluster) = ("host:7104".to_owned(), ClusterId(0x00c0_ffee));
        let enrolled = Wish::Enrolled {
            node,
            address,
            cluster,
        };
        let words = format!("KV.MEMBER ENROL 4 host:7104 {cluster}");
        assert_eq!(parsed(&words), Ok((enrolled, 5)));
        assert_eq!(parsed("KV.MEMBER PROMOTE 4"), Ok((Wish::Voter { node }, 3)));
        for (words, why) in [
            ("KV.MEMBER ADD 0 host:7104", "number above 0"),
            ("KV.MEMBER ADD x host:7104", "number above 0"),
            ("KV.MEMBER ADD 4", "host:port"),
            ("KV.MEMBER ADD 4 host", "host:port"),
            ("KV.MEMBER UPDATE 4 :7104", "host:port"),
            ("KV.MEMBER REPLACE 1 4", "host:port"),
            ("KV.MEMBER ENROL 4 host:7104", "hexadecimal"),
            ("KV.MEMBER ENROL 4 host:7104 GROUP 0", "hexadecimal"),
            ("KV.MEMBER", "unknown subcommand"),
        ] {
            assert!(parsed(words).unwrap_err().contains(why), "{words}");
        }
    }

    #[test]
    fn what_is_already_so_is_not_changed_again() {
        let mut now = Membership::new([Member::voter(NodeId(1), "a:1"), Member::voter(NodeId(2), "b:2")]);
        now.removed.push(NodeId(3));
        now.members.push(Member {
            role: Role::Learner,
            ..Member::voter(NodeId(5), "e:5")
        });
        let change = |words: &str| parsed(words).unwrap().0.change(&now);
        for words in [
            "KV.MEMBER ADD 1 a:1",
            "KV.MEMBER ENROL 1 a:1 1",
            "KV.MEMBER PROMOTE 1",
            "KV.MEMBER REMOVE 3",
            "KV.MEMBER REPLACE 3 2 b:2",
            "KV.MEMBER UPDATE 2 b:2",
        ] {
            assert_eq!(change(words), Ok(None), "{words}");
        }
        for (words, expected) in [
            ("KV.MEMBER PROMOTE 9", Reason::NotFound),
            ("KV.MEMBER REMOVE 9", Reason::NotFound),
            ("KV.MEMBER REPLACE 8 9 c:3", Reason::NotFound),
            ("KV.MEMBER REPLACE 22 2 b:2", Reason::NotFound),
            ("KV.MEMBER ENROL 3 c:3 1", Reason::Removed),
            ("KV.MEMBER ADD 1 c:3", Reason::Refused),
            ("KV.MEMBER REPLACE 3 5 e:5", Reason::Refused),
        ] {
            assert_eq!(change(words).unwrap_err().0, expected, "{words}");
        }
        for added in ["KV.MEMBER ADD 3 c:3", "KV.MEMBER ENROL 4 c:3 1"] {
            let change = change(added);
            assert!(
                matches!(change, Ok(Some(Change::AddLearner { .. }))),
                "{added}: {change:?}"
            );
        }
        let (node, by) = (NodeId(1), NodeId(2));
        assert_eq!(
            change("KV.MEMBER REPLACE 1 2 b:2"),
            Ok(Some(Change::Remove { node }))
        );
        assert_eq!(
            change("KV.MEMBER REPLACE 1 4 d:4"),
            Ok(Some(Change::Replace {
                node,
                by: NodeId(4),
                address: "d:4".into()
            }))
        );
        assert_eq!(
            change("KV.MEMBER DEMOTE 2"),
            Ok(Some(Change::Demote { node: by }))
        );
    }
}

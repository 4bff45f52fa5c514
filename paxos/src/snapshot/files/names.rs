//! Names of files and directories: made from numbers, and read back to the letter. Nothing that a peer says is in one.

use alloc::{format, string::String};
use core::fmt;

use crate::types::{GroupId, Slot};

/// A file of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) upto: Slot,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Whole,
    Saving,
    Damaged,
    Partial { total: u64 },
}

impl Name {
    pub(super) const fn whole(upto: Slot) -> Self {
        Self {
            upto,
            kind: Kind::Whole,
        }
    }

    pub(super) const fn saving(upto: Slot) -> Self {
        Self {
            upto,
            kind: Kind::Saving,
        }
    }

    pub(super) const fn damaged(upto: Slot) -> Self {
        Self {
            upto,
            kind: Kind::Damaged,
        }
    }

    pub(super) const fn partial(upto: Slot, total: u64) -> Self {
        Self {
            upto,
            kind: Kind::Partial { total },
        }
    }

    /// `None` for a file that is none of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (stem, kind) = text.split_once('.')?;
        let (upto, total) = match stem.split_once('-') {
            Some((upto, total)) => (upto, Some(total)),
            None => (stem, None),
        };
        let kind = match (kind, total) {
            ("snapshot", None) => Kind::Whole,
            ("saving", None) => Kind::Saving,
            ("damaged", None) => Kind::Damaged,
            ("partial", Some(total)) => Kind::Partial {
                total: total.parse().ok()?,
            },
            _ => return None,
        };
        let name = Self {
            upto: Slot(upto.parse().ok()?),
            kind,
        };
        (format!("{name}") == text).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upto = self.upto.0;
        match self.kind {
            Kind::Whole => write!(f, "{upto:020}.snapshot"),
            Kind::Saving => write!(f, "{upto:020}.saving"),
            Kind::Damaged => write!(f, "{upto:020}.damaged"),
            Kind::Partial { total } => write!(f, "{upto:020}-{total}.partial"),
        }
    }
}

pub(super) fn directory_of(group: GroupId) -> String {
    format!("group-{group}")
}

pub(super) fn group_of(directory: &str) -> Option<GroupId> {
    let group = GroupId(directory.strip_prefix("group-")?.parse().ok()?);
    (directory_of(group) == directory).then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_to_the_letter() {
        for name in [
            Name::whole(Slot(0)),
            Name::saving(Slot(7)),
            Name::damaged(Slot::MAX),
            Name::partial(Slot(1_000), u64::MAX),
        ] {
            assert_eq!(Name::parse(&format!("{name}")), Some(name));
        }
        for stranger in [
            "",
            "lock",
            "7.snapshot",
            "+0000000000000000007.snapshot",
            "00000000000000000007.snapshot.gz",
            "00000000000000000007-5.snapshot",
            "00000000000000000007.partial",
            "../00000000000000000007.snapshot",
        ] {
            assert_eq!(Name::parse(stranger), None, "{stranger}");
        }
        assert_eq!(group_of("group-12"), Some(GroupId(12)));
        assert_eq!(
            (group_of("group-012"), group_of("group--1"), group_of("groups")),
            (None, None, None)
        );
    }
}

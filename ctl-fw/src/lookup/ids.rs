//! Users and groups by name.

use nix::unistd::{Gid, Group, Uid, User};
use shared::rule::IdRange;

/// `names` with numbers in place of names: `www-data,1000-1999` becomes `33,1000-1999`.
pub(crate) fn numbers(names: &str, groups: bool) -> Result<String, String> {
    let number = |name: &str| match name.parse::<IdRange>() {
        Ok(range) => Ok(range.to_string()),
        Err(_) => id(name, groups).map(|id| id.to_string()),
    };
    Ok(names.split(',').map(number).collect::<Result<Vec<_>, _>>()?.join(","))
}

fn id(name: &str, group: bool) -> Result<u32, String> {
    let found = if group {
        Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()))
    } else {
        User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()))
    };
    let kind = if group { "group" } else { "user" };
    match found {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("there is no {kind} {name:?}")),
        Err(errno) => Err(format!("cannot look up the {kind} {name:?}: {}", errno.desc())),
    }
}

/// The name of a user, or the number.
pub(crate) fn user_name(id: u32) -> String {
    User::from_uid(Uid::from_raw(id)).ok().flatten().map_or_else(|| id.to_string(), |user| user.name)
}

/// The name of a group, or the number.
pub(crate) fn group_name(id: u32) -> String {
    Group::from_gid(Gid::from_raw(id)).ok().flatten().map_or_else(|| id.to_string(), |group| group.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_numbers() {
        assert_eq!(numbers("root,1000-1999,7", false).unwrap(), "0,1000-1999,7");
        assert_eq!(numbers("root", true).unwrap(), "0");
        let error = numbers("root,no-such-user-here", false).unwrap_err();
        assert!(error.contains("no-such-user-here"), "{error}");
        assert_eq!(user_name(0), "root");
        assert_eq!(group_name(4_000_000_007), "4000000007");
    }
}

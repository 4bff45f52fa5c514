//! Commands that a connection answers alone.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};

use super::{
    Session, Shared,
    info::{REDIS_VERSION, UNKNOWN_ADDRESS},
    pipeline::wrong_arity,
};
use crate::{
    command::{Command, Keys, table},
    resp::{Args, is, number, write},
};

/// Carries a command out and writes its reply.
pub type LocalCommand = fn(&Shared, &mut Session, Args<'_>, &mut BytesMut);

fn ok(reply: &mut BytesMut) {
    reply.put_slice(write::OK);
}

fn texts(reply: &mut BytesMut, texts: &[&str]) {
    for text in texts {
        write::bulk(reply, text.as_bytes());
    }
}

/// How many bytes of a client's argument are shown in errors.
pub(super) const MAX_SHOWN_BYTES: usize = 128;

/// An argument as text for an error.
pub(super) fn shown(arg: &[u8]) -> String {
    let shown = arg.get(..MAX_SHOWN_BYTES).unwrap_or(arg);
    String::from_utf8_lossy(shown).into_owned()
}

/// The subcommand's arguments are too many or too few, or there is no such subcommand.
pub(super) fn no_subcommand(name: &str, args: Args<'_>, known: &[&str], reply: &mut BytesMut) {
    let given = shown(args.get(1));
    if let Some(known) = known.iter().find(|known| is(args.get(1), known)) {
        write::error(reply, &wrong_arity(&format!("{name}|{known}")));
        return;
    }
    write::error(
        reply,
        &format!(
            "ERR unknown subcommand '{given}'. Try {} HELP.",
            name.to_uppercase()
        ),
    );
}

pub(crate) fn ping(_: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    match args.len() {
        1 => write::simple(reply, "PONG"),
        2 => write::bulk(reply, args.get(1)),
        _ => write::error(reply, &wrong_arity("ping")),
    }
}

pub(crate) fn echo(_: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    write::bulk(reply, args.get(1));
}

pub(crate) fn quit(_: &Shared, session: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    session.close = true;
    ok(reply);
}

/// `SHUTDOWN [NOSAVE|SAVE] [NOW] [FORCE]`: what was acknowledged is safe, so they all mean the same.
pub(crate) fn shutdown(shared: &Shared, session: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    let is_known = |option: &[u8]| {
        ["NOSAVE", "SAVE", "NOW", "FORCE"]
            .iter()
            .any(|known| is(option, known))
    };
    if is(args.get(1), "ABORT") {
        write::error(reply, "ERR No shutdown in progress.");
    } else if !args.from(1).all(is_known) {
        write::error(reply, "ERR syntax error");
    } else if shared.settings.shutdown.allows(session.is_local) {
        tracing::info!(client = %session.peer, "SHUTDOWN");
        // Without an answer, as everybody is used to.
        session.close = true;
        shared.shutdown_wanted.notify_one();
    } else {
        write::error(
            reply,
            "NOPERM this client may not stop the node; see kvstore serve --shutdown-command",
        );
    }
}

pub(crate) fn reset(shared: &Shared, session: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    session.name.clear();
    session.resp3 = false;
    session.read_only = false;
    shared.clients.update(session);
    write::simple(reply, "RESET");
}

pub(crate) fn read_only(_: &Shared, session: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    session.read_only = true;
    ok(reply);
}

pub(crate) fn read_write(_: &Shared, session: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    session.read_only = false;
    ok(reply);
}

pub(crate) fn select(_: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    match number::integer(args.get(1)) {
        Some(0) => ok(reply),
        Some(_) => write::error(reply, "ERR DB index is out of range"),
        None => write::error(reply, "ERR value is not an integer or out of range"),
    }
}

/// There is one user, `default`, without a password: every password of it is right.
pub(crate) fn auth(_: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    match args.len() {
        2 => write::error(
            reply,
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        ),
        3 if args.get(1) == b"default" => ok(reply),
        3 => write::error(reply, WRONG_PASSWORD),
        _ => write::error(reply, "ERR syntax error"),
    }
}

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

pub(crate) fn time(_: &Shared, _: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    write::array(reply, 2);
    texts(
        reply,
        &[&now.as_secs().to_string(), &now.subsec_micros().to_string()],
    );
}

pub(crate) fn role(shared: &Shared, _: &mut Session, _: Args<'_>, reply: &mut BytesMut) {
    let group = shared.groups.first();
    let applied = group.map_or(0, |group| group.metrics().applied_index.get());
    if shared.serves_writes() {
        write::array(reply, 3);
        texts(reply, &["master"]);
        write::count(reply, applied);
        write::array(reply, 0);
        return;
    }
    let leader = shared
        .leader(0)
        .and_then(|leader| shared.addresses_of(leader.node));
    let address = leader.clone().unwrap_or_default().resp;
    let (host, port) = address.rsplit_once(':').unwrap_or(UNKNOWN_ADDRESS);
    write::array(reply, 5);
    texts(reply, &["slave", host]);
    write::integer(reply, port.parse().unwrap_or(0));
    texts(reply, &[if leader.is_some() { "connected" } else { "connect" }]);
    write::count(reply, applied);
}

pub(crate) fn hello(shared: &Shared, session: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    let mut options = args.from(1);
    let resp3 = match options.next() {
        None => session.resp3,
        Some(b"2") => false,
        Some(b"3") => true,
        Some(version) if number::integer(version).is_none() => {
            return write::error(reply, "ERR Protocol version is not an integer or out of range");
        }
        Some(_) => return write::error(reply, "NOPROTO unsupported protocol version"),
    };
    let mut name = None;
    while let Some(option) = options.next() {
        let known = if is(option, "AUTH") {
            match (options.next(), options.next()) {
                (Some(b"default"), Some(_)) => true,
                (Some(_), Some(_)) => return write::error(reply, WRONG_PASSWORD),
                _ => false,
            }
        } else if is(option, "SETNAME") {
            name = options.next();
            name.is_some()
        } else {
            false
        };
        if !known {
            let option = shown(option);
            return write::error(reply, &format!("ERR syntax error in HELLO option '{option}'"));
        }
    }
    if let Some(name) = name {
        if !valid(name) {
            return write::error(reply, BAD_NAME);
        }
        session.name = String::from_utf8_lossy(name).into_owned();
    }
    session.resp3 = resp3;
    shared.clients.update(session);
    write::map(reply, 7);
    texts(reply, &["server", "kvstore", "version", REDIS_VERSION, "proto"]);
    write::integer(reply, if resp3 { 3 } else { 2 });
    texts(reply, &["id"]);
    write::count(reply, session.id);
    texts(reply, &["mode", "standalone", "role", shared.role(), "modules"]);
    write::array(reply, 0);
}

/// The longest name that a client may give itself, in bytes.
const MAX_CLIENT_NAME_BYTES: usize = 256;

const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

fn valid(text: &[u8]) -> bool {
    text.len() <= MAX_CLIENT_NAME_BYTES && text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

pub(crate) fn client(shared: &Shared, session: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    const KNOWN: &[&str] = &[
        "id", "getname", "setname", "setinfo", "list", "info", "no-evict", "no-touch",
    ];
    let sub = args.get(1);
    match args.len() {
        2 if is(sub, "ID") => write::count(reply, session.id),
        2 if is(sub, "GETNAME") && session.name.is_empty() => write::null(reply),
        2 if is(sub, "GETNAME") => write::bulk(reply, session.name.as_bytes()),
        2 if is(sub, "INFO") => {
            let mut line = String::new();
            session.describe(&mut line);
            write::bulk(reply, line.as_bytes());
        }
        2.. if is(sub, "LIST") => write::bulk(reply, shared.clients.list().as_bytes()),
        3 if is(sub, "NO-EVICT") || is(sub, "NO-TOUCH") => ok(reply),
        3 if is(sub, "SETNAME") => {
            let name = args.get(2);
            if !valid(name) {
                return write::error(reply, BAD_NAME);
            }
            session.name = String::from_utf8_lossy(name).into_owned();
            shared.clients.update(session);
            ok(reply);
        }
        4 if is(sub, "SETINFO") => {
            let (attribute, value) = (args.get(2), args.get(3));
            if !valid(value) {
                return write::error(
                    reply,
                    "ERR attributes cannot contain spaces, newlines or special characters.",
                );
            }
            let value = String::from_utf8_lossy(value).into_owned();
            if is(attribute, "LIB-NAME") {
                session.library.0 = value;
            } else if is(attribute, "LIB-VER") {
                session.library.1 = value;
            } else {
                let attribute = shown(attribute);
                return write::error(reply, &format!("ERR Unrecognized option '{attribute}'"));
            }
            shared.clients.update(session);
            ok(reply);
        }
        _ => no_subcommand("client", args, KNOWN, reply),
    }
}

pub(crate) fn config(shared: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    let sub = args.get(1);
    let max_clients = shared.settings.max_clients.to_string();
    let port = shared
        .settings
        .addresses
        .resp
        .rsplit_once(':')
        .map_or("0", |(_, port)| port);
    let settings = [
        ("appendfsync", "always"),
        ("appendonly", "yes"),
        ("databases", "1"),
        ("maxclients", &max_clients),
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
        ("port", port),
        ("save", ""),
        ("timeout", "0"),
    ];
    if is(sub, "GET") && args.len() >= 3 {
        let wanted: Vec<_> = settings
            .iter()
            .filter(|(name, _)| {
                args.from(2)
                    .any(|pattern| crate::machine::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
            })
            .collect();
        write::map(reply, wanted.len());
        for (name, value) in wanted {
            texts(reply, &[name, value]);
        }
    } else if is(sub, "RESETSTAT") && args.len() == 2 {
        ok(reply);
    } else if is(sub, "SET") && args.len() >= 4 {
        write::error(
            reply,
            "ERR settings are given on the command line of 'kvstore serve' and cannot be changed here",
        );
    } else {
        no_subcommand("config", args, &["get", "set", "resetstat"], reply);
    }
}

pub(crate) fn command(_: &Shared, _: &mut Session, args: Args<'_>, reply: &mut BytesMut) {
    let sub = args.get(1);
    let named = |name: &[u8]| table::find(name).map(|index| &table::COMMANDS[index]);
    let described = |reply: &mut BytesMut, command: Option<&Command>| match command {
        Some(command) => describe(command, reply),
        None => write::null(reply),
    };
    match args.len() {
        1 => describe_all(reply),
        2 if is(sub, "COUNT") => write::count(reply, table::COMMANDS.len() as u64),
        2 if is(sub, "LIST") => {
            write::array(reply, table::COMMANDS.len());
            for command in table::COMMANDS {
                texts(reply, &[command.name]);
            }
        }
        2 if is(sub, "INFO") => describe_all(reply),
        3.. if is(sub, "INFO") => {
            write::array(reply, args.len() - 2);
            args.from(2).for_each(|name| described(reply, named(name)));
        }
        2.. if is(sub, "DOCS") => {
            let wanted: Vec<&Command> = if args.len() == 2 {
                table::COMMANDS.iter().collect()
            } else {
                args.from(2).filter_map(named).collect()
            };
            write::map(reply, wanted.len());
            for command in wanted {
                texts(reply, &[command.name]);
                write::map(reply, 3);
                texts(reply, &["summary", command.summary, "since", "1.0.0"]);
                texts(reply, &["group", command.documentation_group()]);
            }
        }
        3.. if is(sub, "GETKEYS") => get_keys(args, named(args.get(2)), reply),
        _ => no_subcommand(
            "command",
            args,
            &["count", "docs", "info", "list", "getkeys"],
            reply,
        ),
    }
}

fn describe_all(reply: &mut BytesMut) {
    write::array(reply, table::COMMANDS.len());
    for command in table::COMMANDS {
        describe(command, reply);
    }
}

/// One command as `COMMAND` tells of it.
fn describe(command: &Command, reply: &mut BytesMut) {
    let Keys { first, last, step } = command.keys;
    write::array(reply, 10);
    texts(reply, &[command.name]);
    write::integer(reply, command.arity as i64);
    write::array(reply, command.flags().len());
    command.flags().iter().for_each(|flag| write::simple(reply, flag));
    write::integer(reply, first as i64);
    write::integer(reply, last as i64);
    write::integer(reply, step as i64);
    // Access categories, tips, key specifications, subcommands: none.
    (0..4).for_each(|_| write::array(reply, 0));
}

fn get_keys(args: Args<'_>, command: Option<&Command>, reply: &mut BytesMut) {
    let Some(command) = command else {
        return write::error(reply, "ERR Invalid command specified");
    };
    let inner = args.skip(2);
    if command.keys == Keys::NONE {
        return write::error(reply, "ERR The command has no key arguments");
    }
    if !command.takes(inner.len()) {
        return write::error(reply, "ERR Invalid number of arguments specified for command");
    }
    write::array(reply, command.keys.of(inner).count());
    command.keys.of(inner).for_each(|key| write::bulk(reply, key));
}

//! The URL of a database, as libpq, node-postgres and Prisma write it. Every parameter is heeded or refused with a
//! sentence; none is passed over that would change the connection.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::redact::REDACTED;

/// How long a connection may take to be made, and how long one may be waited for, unless the URL sets it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Statements that one connection keeps prepared.
const STATEMENTS: usize = 256;

/// Parameters that mean nothing here and do no harm: their effect is there anyway, or concerns another client.
const HARMLESS: &[&str] = &[
    "uselibpqcompat",
    "fallback_application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "statement_cache_size",
    "single_use_connections",
    "max_idle_connection_lifetime",
    "max_connection_lifetime",
];

/// The pooler between Dashi and the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooler {
    /// The URL names none.
    Unknown,
    /// Nothing, or one that leaves a connection to its client.
    None,
    /// One that shares connections between transactions.
    PerTransaction,
}

/// Where the database is, and how to talk to it.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// One per host, in the order of the URL.
    pub options: Vec<PgConnectOptions>,
    /// The search path.
    pub schema: Option<String>,
    pub pooler: Pooler,
    /// `connection_limit`.
    pub connections_max: Option<u32>,
    /// `connect_timeout`.
    pub connect_timeout: Duration,
    /// `pool_timeout`.
    pub acquire_timeout: Duration,
    /// `socket_timeout`: how long a statement may take.
    pub socket_timeout: Option<Duration>,
}

/// Why a URL names no database that Dashi can use; in words, without a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

fn refuse<T>(reason: impl Into<String>) -> Result<T, AddressError> {
    Err(AddressError(reason.into()))
}

const ENCODE: &str = "in a password, write / as %2F, ? as %3F, # as %23, @ as %40 and % as %25";

impl Address {
    /// Reads a URL, and looks that the files it names can be read.
    pub fn parse(url: &str) -> Result<Self, AddressError> {
        let Some(rest) = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")) else {
            return refuse("it does not begin with postgres:// or postgresql://");
        };
        if rest.contains('#') {
            return refuse(format!("a # ends a URL; {ENCODE}"));
        }
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        if database.contains('@') || (query.contains('@') && query.contains('/') && !authority.contains('@'))
        {
            return refuse(format!("its user and password end before the last @; {ENCODE}"));
        }
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_info, None),
        };
        let mut parts = Parts {
            user: Some(decoded(user, false)?).filter(|user| !user.is_empty()),
            password: password.map(|password| decoded(password, false)).transpose()?,
            database: Some(decoded(database, false)?).filter(|database| !database.is_empty()),
            hosts: hosts.split(',').map(host_and_port).collect::<Result<_, _>>()?,
            ..Parts::default()
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parts.set(&decoded(name, true)?, decoded(value, true)?)?;
        }
        parts.address()
    }
}

/// The parameters of a URL.
#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    hosts: Vec<(String, Option<u16>)>,
    ports: Vec<u16>,
    ssl_mode: Option<PgSslMode>,
    /// Prisma's: `sslaccept`.
    strict: Option<bool>,
    root_certificate: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    application_name: Option<String>,
    options: Option<String>,
    schema: Option<String>,
    pooler: Option<bool>,
    connections_max: Option<u32>,
    connect_timeout: Option<Duration>,
    acquire_timeout: Option<Duration>,
    socket_timeout: Option<Duration>,
}

impl Parts {
    fn set(&mut self, name: &str, value: String) -> Result<(), AddressError> {
        if HARMLESS.contains(&name) || value.is_empty() {
            return Ok(());
        }
        match name {
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "dbname" => self.database = Some(value),
            "host" | "hostaddr" => {
                self.hosts = value.split(',').map(|host| (host.to_owned(), None)).collect();
            }
            "port" => {
                let ports: Result<_, _> = value.split(',').map(port).collect();
                self.ports = ports?;
            }
            "sslmode" | "ssl-mode" => self.ssl_mode = Some(ssl_mode(&value)?),
            "ssl" => {
                self.ssl_mode = Some(match &*value {
                    "true" | "1" | "no-verify" => PgSslMode::Require,
                    "false" | "0" => PgSslMode::Disable,
                    _ => return refuse(format!("`ssl={value}` is not known: write sslmode={SSL_MODES}")),
                });
            }
            "sslaccept" => {
                self.strict = Some(match &*value {
                    "strict" => true,
                    "accept_invalid_certs" => false,
                    _ => {
                        return refuse(format!(
                            "`sslaccept={value}` is not known: write strict or accept_invalid_certs"
                        ));
                    }
                });
            }
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.root_certificate = Some(value),
            "sslcert" | "ssl-cert" => self.certificate = Some(value),
            "sslkey" | "ssl-key" => self.key = Some(value),
            "sslidentity" | "sslpassword" => {
                return refuse(format!(
                    "`{name}`: a client's certificate in PKCS #12 cannot be read; give it as PEM with sslcert and sslkey"
                ));
            }
            "application_name" => self.application_name = Some(value),
            "options" => self.options = Some(value),
            "schema" => self.schema = Some(value),
            "pgbouncer" => {
                self.pooler = Some(match &*value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return refuse(format!("`pgbouncer={value}` is not known: write true or false")),
                });
            }
            "connection_limit" => {
                let limit = value.parse().ok().filter(|limit| *limit > 0);
                let Some(limit) = limit else {
                    return refuse(format!("`connection_limit={value}` is no number of connections"));
                };
                self.connections_max = Some(limit);
            }
            "connect_timeout" => self.connect_timeout = seconds(name, &value)?,
            "pool_timeout" => self.acquire_timeout = seconds(name, &value)?,
            "socket_timeout" => self.socket_timeout = seconds(name, &value)?,
            "target_session_attrs" => match &*value {
                // Rows are written, so of several servers the one that takes them is looked for anyway.
                "any" | "read-write" | "primary" | "prefer-standby" => {}
                _ => {
                    return refuse(format!(
                        "`target_session_attrs={value}`: rows cannot be written to such a server; write read-write"
                    ));
                }
            },
            "channel_binding" => {
                if value == "require" {
                    return refuse(
                        "`channel_binding=require`: Dashi cannot bind its log-in to the TLS channel; take it out of \
                         the URL (sslmode=verify-full protects against the same)",
                    );
                }
            }
            "gssencmode" | "sslnegotiation" | "client_encoding" | "encoding" => {
                let is_so_anyway = match name {
                    "gssencmode" => value != "require",
                    "sslnegotiation" => value == "postgres",
                    _ => matches!(&*value.to_ascii_lowercase(), "utf8" | "utf-8" | "auto"),
                };
                if !is_so_anyway {
                    return refuse(format!("`{name}={value}` cannot be heeded; take it out of the URL"));
                }
            }
            _ => match name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
                Some(option) => {
                    let options = self.options.take().map_or_else(String::new, |options| options + " ");
                    self.options = Some(format!("{options}-c {option}={}", value.replace(' ', "\\ ")));
                }
                None => {
                    let shown = if name.to_ascii_lowercase().contains("pass") { REDACTED } else { &value };
                    return refuse(format!(
                        "`{name}={shown}` is no parameter that Dashi knows; take it out of the URL"
                    ));
                }
            },
        }
        Ok(())
    }

    fn address(mut self) -> Result<Address, AddressError> {
        // Prisma's `sslcert` is the certificate of the authority that signed the server's, libpq's is the client's,
        // which needs a key.
        if self.key.is_none() && self.root_certificate.is_none() {
            self.root_certificate = self.certificate.take();
        }
        if self.key.is_some() != self.certificate.is_some() {
            return refuse("a client's certificate needs both sslcert and sslkey");
        }
        let is_of_the_system = self.root_certificate.as_deref() == Some("system");
        if is_of_the_system {
            self.root_certificate = None;
        }
        for (name, path) in
            [("sslrootcert", &self.root_certificate), ("sslcert", &self.certificate), ("sslkey", &self.key)]
        {
            if let Some(path) = path
                && let Err(error) = std::fs::File::open(Path::new(path))
            {
                return refuse(format!("{name}: {path} cannot be read ({error})"));
            }
        }
        let ssl_mode = match (self.ssl_mode, self.strict) {
            (Some(PgSslMode::Require), Some(true)) => Some(PgSslMode::VerifyFull),
            (None | Some(PgSslMode::Require), _) if is_of_the_system => Some(PgSslMode::VerifyFull),
            (mode, _) => mode,
        };
        let mut options = Vec::new();
        if self.ports.len() > 1 && self.ports.len() != self.hosts.len() {
            return refuse("there must be one port, or one for each host");
        }
        for (place, (host, port)) in self.hosts.iter().enumerate() {
            let mut of_host = match self.password {
                Some(_) => PgConnectOptions::new_without_pgpass(),
                // The driver looks for a password in .pgpass, by the parts of a URL.
                None => self.driver_options(host)?,
            };
            if let Some(path) = Some(host).filter(|host| host.starts_with('/')) {
                of_host = of_host.socket(path);
            } else if !host.is_empty() {
                of_host = of_host.host(host);
            }
            if let Some(port) = port.or_else(|| self.ports.get(place).or(self.ports.first()).copied()) {
                of_host = of_host.port(port);
            }
            if let Some(user) = &self.user {
                of_host = of_host.username(user);
            }
            if let Some(password) = &self.password {
                of_host = of_host.password(password);
            }
            if let Some(database) = &self.database {
                of_host = of_host.database(database);
            }
            if let Some(ssl_mode) = ssl_mode {
                of_host = of_host.ssl_mode(ssl_mode);
            }
            if let Some(path) = &self.root_certificate {
                of_host = of_host.ssl_root_cert(path);
            }
            if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
                of_host = of_host.ssl_client_cert(certificate).ssl_client_key(key);
            }
            if let Some(given) = &self.options {
                // The driver takes them by name; here they come as the server reads them.
                of_host = with_options(of_host, given)?;
            }
            options.push(
                of_host
                    .application_name(self.application_name.as_deref().unwrap_or("dashi"))
                    .statement_cache_capacity(STATEMENTS)
                    // Poolers refuse it at the start of a connection, and since PostgreSQL 12 it changes nothing.
                    .extra_float_digits(None),
            );
        }
        Ok(Address {
            options,
            schema: self.schema,
            pooler: match self.pooler {
                None => Pooler::Unknown,
                Some(true) => Pooler::PerTransaction,
                Some(false) => Pooler::None,
            },
            connections_max: self.connections_max,
            connect_timeout: self.connect_timeout.unwrap_or(TIMEOUT),
            acquire_timeout: self.acquire_timeout.unwrap_or(TIMEOUT),
            socket_timeout: self.socket_timeout,
        })
    }

    fn driver_options(&self, host: &str) -> Result<PgConnectOptions, AddressError> {
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let user = self.user.as_deref().map_or_else(String::new, |user| format!("{}@", encoded(user)));
        let host = if host.starts_with('/') { encoded(host) } else { host.to_owned() };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let host = if host.is_empty() && !user.is_empty() { "localhost".to_owned() } else { host };
        let database = self.database.as_deref().map_or_else(String::new, encoded);
        PgConnectOptions::from_str(&format!("postgres://{user}{host}/{database}"))
            .map_err(|_| AddressError("its host cannot be read".to_owned()))
    }
}

const SSL_MODES: &str = "disable, prefer, require, no-verify, verify-ca or verify-full";

fn ssl_mode(value: &str) -> Result<PgSslMode, AddressError> {
    Ok(match value {
        "disable" => PgSslMode::Disable,
        // Both take what the server offers, whichever it is; the driver knows one order.
        "allow" | "prefer" => PgSslMode::Prefer,
        // node-postgres's name for TLS with any certificate, which is what libpq calls require.
        "require" | "no-verify" => PgSslMode::Require,
        "verify-ca" => PgSslMode::VerifyCa,
        "verify-full" => PgSslMode::VerifyFull,
        _ => return refuse(format!("`sslmode={value}` is not known: write {SSL_MODES}")),
    })
}

/// `-c name=value` and `--name=value`, separated by spaces.
fn with_options(options: PgConnectOptions, given: &str) -> Result<PgConnectOptions, AddressError> {
    let unreadable = || AddressError(format!("`options={given}` cannot be read: write -c NAME=VALUE"));
    let mut named = Vec::new();
    let mut words = given.split_whitespace();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next().ok_or_else(unreadable)?,
            Some(assignment) => assignment,
            None => return Err(unreadable()),
        };
        let (name, value) = assignment.split_once('=').ok_or_else(unreadable)?;
        named.push((name.to_owned(), value.to_owned()));
    }
    Ok(options.options(named))
}

fn seconds(name: &str, value: &str) -> Result<Option<Duration>, AddressError> {
    match value.parse::<u64>() {
        // As everywhere: no limit of its own, so ours.
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => refuse(format!("`{name}={value}` is no number of seconds")),
    }
}

/// A host and its port, without brackets. A text that is no port is not repeated: it may be a piece of a password.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), AddressError> {
    let (host, after) = match text.strip_prefix('[') {
        Some(rest) => {
            rest.split_once(']').ok_or_else(|| AddressError("a [ has no ] in its host".to_owned()))?
        }
        None => match text.split_once(':') {
            Some((host, _)) => (host, &text[host.len()..]),
            None => (text, ""),
        },
    };
    let after = match after.strip_prefix(':') {
        Some(digits) if !digits.is_empty() => Some(port(digits)?),
        _ => None,
    };
    Ok((decoded(host, false)?, after))
}

fn port(digits: &str) -> Result<u16, AddressError> {
    match digits.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => refuse(format!("its port is no number from 1 to 65535; {ENCODE}")),
    }
}

/// Percent-decoded; in a query a plus is a space.
fn decoded(text: &str, in_query: bool) -> Result<String, AddressError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex = |digit: u8| (digit as char).to_digit(16);
        match (*first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push((high * 16 + low) as u8);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            (b'+', _) if in_query => bytes.push(b' '),
            (byte, _) => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| AddressError("what it percent-encodes is not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Address {
        Address::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// The driver's options, without those that are the same in all cases.
    fn driver(url: &str) -> String {
        format!("{:?}", parse(url).options[0])
    }

    #[test]
    fn user_password_host_and_database_are_read_whatever_they_hold() {
        for (url, expected) in [
            (
                "postgres://u:p@h:5433/d",
                ["host: \"h\"", "port: 5433", "username: \"u\"", "Some(\"p\")", "Some(\"d\")"],
            ),
            (
                "postgresql://u%40x:p%2Fa%40b%23c%3Fd%25@h/d%20e",
                ["host: \"h\"", "port: 5432", "username: \"u@x\"", "Some(\"p/a@b#c?d%\")", "Some(\"d e\")"],
            ),
            (
                "postgres://u:p@ss@h/d",
                ["host: \"h\"", "port: 5432", "username: \"u\"", "Some(\"p@ss\")", "Some(\"d\")"],
            ),
            (
                "postgres://u:p@[::1]:7/d",
                ["host: \"::1\"", "port: 7", "username: \"u\"", "Some(\"p\")", "Some(\"d\")"],
            ),
            (
                "postgres:///d?host=/run/postgresql&user=u&password=p&port=5434",
                [
                    "socket: Some(\"/run/postgresql\")",
                    "port: 5434",
                    "username: \"u\"",
                    "Some(\"p\")",
                    "Some(\"d\")",
                ],
            ),
            (
                "postgres://u:p@%2Frun%2Fpostgresql/d",
                [
                    "socket: Some(\"/run/postgresql\")",
                    "port: 5432",
                    "username: \"u\"",
                    "Some(\"p\")",
                    "Some(\"d\")",
                ],
            ),
        ] {
            let shown = driver(url);
            for part in expected {
                assert!(shown.contains(part), "{url}: {part} is not in {shown}");
            }
        }
    }

    #[test]
    fn parameters_of_other_clients_are_heeded() {
        let address = parse(
            "postgres://u:p@h/d?schema=x%20y&connection_limit=3&pool_timeout=2&connect_timeout=7&socket_timeout=9\
             &pgbouncer=true&sslmode=no-verify&statement_cache_size=0&keepalives=1",
        );
        assert_eq!(address.schema.as_deref(), Some("x y"));
        assert_eq!(address.connections_max, Some(3));
        assert_eq!(address.acquire_timeout, Duration::from_secs(2));
        assert_eq!(address.connect_timeout, Duration::from_secs(7));
        assert_eq!(address.socket_timeout, Some(Duration::from_secs(9)));
        assert_eq!(address.pooler, Pooler::PerTransaction);
        assert_eq!(parse("postgres://u:p@h/d?pgbouncer=false").pooler, Pooler::None);
        assert_eq!(parse("postgres://u:p@h/d?connect_timeout=0&schema=").connect_timeout, TIMEOUT);
        for (query, mode) in [
            ("sslmode=no-verify", "Require"),
            ("sslmode=require", "Require"),
            ("sslmode=require&sslaccept=accept_invalid_certs", "Require"),
            ("sslmode=require&sslaccept=strict", "VerifyFull"),
            ("sslmode=allow", "Prefer"),
            ("sslmode=disable", "Disable"),
            ("sslmode=verify-full", "VerifyFull"),
            ("sslrootcert=system", "VerifyFull"),
            ("ssl=true", "Require"),
        ] {
            let shown = driver(&format!("postgres://u:p@h/d?{query}"));
            assert!(shown.contains(&format!("ssl_mode: {mode},")), "{query}: {shown}");
        }
        let shown = driver("postgres://u:p@h/d?options=-c%20geqo%3Doff%20--jit=off&options[work_mem]=8MB");
        assert!(shown.contains("-c geqo=off -c jit=off -c work_mem=8MB"), "{shown}");
    }

    #[test]
    fn several_hosts_are_several_places_to_connect_to() {
        let shown: Vec<_> = parse("postgres://u:p@a:1,b:2,[::1]/d?target_session_attrs=read-write")
            .options
            .iter()
            .map(|options| format!("{options:?}"))
            .collect();
        let at = |place: usize, host: &str, port: u16| {
            let part = format!("host: \"{host}\", port: {port}");
            assert!(shown[place].contains(&part), "{part} is not in {}", shown[place]);
        };
        at(0, "a", 1);
        at(1, "b", 2);
        at(2, "::1", 5432);
    }

    #[test]
    fn what_cannot_be_heeded_is_refused_with_a_sentence_and_without_the_password() {
        for (url, sentence) in [
            ("mysql://u:hunter2@h/d", "does not begin with postgres://"),
            ("postgres://u:pa/hunter2@h/d", "write / as %2F"),
            ("postgres://u:pa?hunter2@h/d", "write / as %2F"),
            ("postgres://u:pa#hunter2@h/d", "write / as %2F"),
            ("postgres://u:hunter2/x@h/d", "write / as %2F"),
            ("postgres://h:hunter2/d", "write / as %2F"),
            ("postgres://u:hunter2@h:99999/d", "no number from 1 to 65535"),
            ("postgres://u:hunter2@h/d?sslmode=maybe", "`sslmode=maybe` is not known"),
            ("postgres://u:hunter2@h/d?sslrootcert=/nowhere.pem", "/nowhere.pem cannot be read"),
            ("postgres://u:hunter2@h/d?sslidentity=a.p12", "PKCS #12"),
            ("postgres://u:hunter2@h/d?sslkey=/dev/null", "needs both"),
            ("postgres://u:hunter2@h/d?pgbouncer=perhaps", "write true or false"),
            ("postgres://u:hunter2@h/d?connection_limit=none", "no number of connections"),
            ("postgres://u:hunter2@h/d?connect_timeout=soon", "no number of seconds"),
            ("postgres://u:hunter2@h/d?channel_binding=require", "take it out"),
            ("postgres://u:hunter2@h/d?target_session_attrs=standby", "write read-write"),
            ("postgres://u:hunter2@h/d?passfile2=hunter2", "`passfile2=redacted` is no parameter"),
            ("postgres://u:hunter2@h/d?foo=bar", "`foo=bar` is no parameter"),
            ("postgres://u:hunter2@h/d?client_encoding=LATIN1", "cannot be heeded"),
        ] {
            let error = Address::parse(url).expect_err(url).to_string();
            assert!(error.contains(sentence), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

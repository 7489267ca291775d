//! URLs as they may be shown. The only place that takes a password out of one.

/// The text that is printed in the place of a secret.
pub const REDACTED: &str = "redacted";

/// `url` with its password replaced, in the authority and in the query; texts that are no URL included.
///
/// A password that was not percent-encoded may hold any delimiter, so everything up to the last `@` counts as
/// user and password.
pub fn redact_url(url: &str) -> String {
    if url.starts_with("sqlite:") {
        return url.to_owned();
    }
    let (before, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let rest = match rest.rsplit_once('@') {
        Some((user_info, host)) => match user_info.split_once(':') {
            Some((user, _password)) => format!("{user}:{REDACTED}@{host}"),
            // A user alone, unless the @ is one of the query's.
            None => rest.to_owned(),
        },
        None => without_user(rest),
    };
    let Some((address, query)) = rest.split_once('?') else { return before + &rest };
    let query: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}={REDACTED}"),
            _ => parameter.to_owned(),
        })
        .collect();
    format!("{before}{address}?{}", query.join("&"))
}

/// No `@`: hosts and their ports, unless the text there is no port. Then it may be a password whose host was forgotten.
fn without_user(rest: &str) -> String {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let is_port = |host: &str| match host.rsplit_once(':') {
        Some((_, port)) => port.bytes().all(|byte| byte.is_ascii_digit() || byte == b']'),
        None => true,
    };
    match rest.split_once(':') {
        Some((user, _)) if !rest.starts_with('[') && !rest[..end].split(',').all(is_port) => {
            format!("{user}:{REDACTED}")
        }
        _ => rest.to_owned(),
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "api_key", "apikey"].iter().any(|word| name.contains(word))
        // Some of the name is percent-encoded: it may hide such a word.
        || name.contains('%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_redacted_wherever_they_stand() {
        for (url, shown) in [
            ("postgres://u:p@h:5432/db", "postgres://u:redacted@h:5432/db"),
            ("postgres://u:p/w@x?y@h/db", "postgres://u:redacted@h/db"),
            ("postgres://u:p#w@h/db", "postgres://u:redacted@h/db"),
            ("postgres://u:@h/db", "postgres://u:redacted@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://h/db?user=u&password=p&x=1", "postgres://h/db?user=u&password=redacted&x=1"),
            ("postgres://u@h/db?password=p@ss", "postgres://u@h/db?password=redacted"),
            ("postgres://h/db?sslPassword=p", "postgres://h/db?sslPassword=redacted"),
            ("postgres://h/db?pass%77ord=p", "postgres://h/db?pass%77ord=redacted"),
            ("prisma+postgres://h/?api_key=p", "prisma+postgres://h/?api_key=redacted"),
            ("kafka://u:p@h:9092/t", "kafka://u:redacted@h:9092/t"),
            ("kafka://a:9092,b:9092/t", "kafka://a:9092,b:9092/t"),
            ("u:p@h/db", "u:redacted@h/db"),
            ("postgres:u:p@h/db", "postgres:redacted@h/db"),
            ("postgres://u:hunter2/db", "postgres://u:redacted"),
            ("postgres://[::1]:5432/db", "postgres://[::1]:5432/db"),
            ("postgres://h:5432/db", "postgres://h:5432/db"),
            ("sqlite:a:b@c.db", "sqlite:a:b@c.db"),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }
}

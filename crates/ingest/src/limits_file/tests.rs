use proptest::prelude::*;

use super::*;

const SITE: Uuid = Uuid::from_u128(0x11111111_1111_4111_8111_111111111111);
const OTHER: Uuid = Uuid::from_u128(2);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn every_kind_of_entry_is_read() {
    let text = format!(
        "# who sends nonsense\n\nblock website {OTHER}\nblock address 203.0.113.7\n  block address 2001:db8::/32\n\
         block distinct-id * ada lovelace\nblock distinct-id {SITE} bob\npriority {SITE} 3\npriority * 1\n\
         limit website {SITE} rate=50 burst=500 day=1000000\nlimit address 10.0.0.0/8 none\r\nlimit address 10.1.0.0/16 day=0\n"
    );
    let file = LimitsFile::parse(&text).expect("it is right");
    assert_eq!(file.entries(), 10);
    assert_eq!([OTHER, SITE].map(|id| file.is_source_blocked(id)), [true, false]);
    let addresses = ["203.0.113.7", "203.0.113.8", "2001:db8:1::1", "2001:db9::1", "::ffff:203.0.113.7"];
    assert_eq!(addresses.map(|text| file.is_address_blocked(ip(text))), [true, false, true, false, true]);
    let blocked = |id, name| file.is_distinct_id_blocked(id, name);
    assert_eq!([blocked(OTHER, "ada lovelace"), blocked(OTHER, "ada")], [true, false]);
    assert_eq!([blocked(SITE, "bob"), blocked(OTHER, "bob")], [true, false]);
    assert_eq!([SITE, OTHER].map(|id| file.priority(id)), [3, 1]);
    assert_eq!(file.source_limit(SITE), Some(rate_limit(Some(50), Some(500), Some(1_000_000))));
    assert_eq!(file.source_limit(OTHER), None);
    assert_eq!(file.address_limit(ip("10.2.0.0")), Some(RateLimit::default()));
    assert_eq!(file.address_limit(ip("10.1.0.0")), Some(rate_limit(None, None, Some(0))));
    assert_eq!(file.address_limit(ip("192.0.2.1")), None);
}

#[test]
fn a_wrong_line_is_named_with_its_reason() {
    for (line, reason) in [
        ("deny all", "`deny` is not known"),
        ("block", "`block ` is not known"),
        ("block person x", "`block person` is not known"),
        ("block website x", "`x` is no id of a website"),
        ("block address 10.0.0.0/33", "`10.0.0.0/33` is neither an address"),
        ("block address example.org", "`example.org` is neither an address"),
        ("block distinct-id ada", "needs a website (or *)"),
        ("block distinct-id x ada", "`x` is no id of a website"),
        ("priority * 10", "`10` is no priority: 0 to 9"),
        ("priority *", "`` is no priority"),
        ("priority x 1", "`x` is no id"),
        ("limit website 11111111-1111-4111-8111-111111111111", "a limit needs `none`"),
        ("limit address 10.0.0.0/8 rate=0", "nothing could ever pass"),
        ("limit address 10.0.0.0/8 rate=a", "no whole number"),
        ("limit address 10.0.0.0/8 rate=1 rate=2", "rate is there twice"),
        ("limit address 10.0.0.0/8 burst=1", "burst= needs rate="),
        ("limit address 10.0.0.0/8 hour=1", "`hour=1` is not known"),
        ("limit person x", "`limit person` is not known"),
        ("block address 192.0.2.1/32", "an earlier line says the same"),
    ] {
        let text = format!("# first\nblock address 192.0.2.1\n{line}\n");
        let wrong = LimitsFile::parse(&text).expect_err(line);
        assert_eq!(wrong.line, 3, "{line}");
        assert!(wrong.reason.contains(reason), "{line}: {wrong}");
    }
    let twice = LimitsFile::parse("priority * 1\npriority * 2").expect_err("it contradicts itself");
    assert_eq!(twice.line, 2);
}

#[test]
fn a_wrong_file_leaves_the_last_good_one_in_use() {
    let directory = std::env::temp_dir().join(format!("dashi-limits-{}", Uuid::now_v7()));
    std::fs::create_dir(&directory).expect("a directory");
    let path = directory.join("limits");
    let (watched, mut keeper) = WatchedFile::open(path.clone());
    let is_current = || watched.error().is_none();
    assert_eq!((watched.current().entries(), is_current()), (0, false), "there is none yet");
    let replace = |bytes: &[u8]| {
        let beside = directory.join("new");
        std::fs::write(&beside, bytes).expect("written");
        std::fs::rename(&beside, &path).expect("renamed");
    };
    replace(b"block address 192.0.2.1\n");
    keeper.look();
    assert_eq!((watched.current().entries(), is_current()), (1, true));
    for wrong in [&b"block address 192.0.2.1\nblok\n"[..], b"block address 192.0.2.1\nblock \xff\n"] {
        replace(wrong);
        keeper.look();
        assert_eq!((watched.current().entries(), is_current()), (1, false));
        let error = watched.error().expect("it is wrong");
        assert!(
            error.ends_with(": line 2: `blok` is not known: an entry begins with block, priority or limit")
                || error.ends_with(": line 2: it is not UTF-8"),
            "{error}"
        );
    }
    std::fs::remove_file(&path).expect("removed");
    keeper.look();
    assert_eq!(
        (watched.current().entries(), is_current()),
        (1, false),
        "a file that is away changes nothing"
    );
    replace(b"");
    keeper.look();
    assert_eq!((watched.current().entries(), is_current()), (0, true), "an empty file ends all of it");
    std::fs::remove_dir_all(&directory).expect("removed");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic_and_a_wrong_line_is_one_of_its_lines(
        words in proptest::collection::vec(
            prop_oneof![
                Just("block"), Just("limit"), Just("priority"), Just("website"), Just("address"), Just("distinct-id"),
                Just("*"), Just("rate=1"), Just("day=2"), Just("none"), Just("10.0.0.0/8"), Just("\n"), Just("é"),
                Just("11111111-1111-4111-8111-111111111111"), Just("7"), Just("#"),
            ],
            0..40,
        ),
    ) {
        let text = words.join(" ");
        match LimitsFile::parse(&text) {
            Ok(file) => prop_assert!(file.entries() <= text.lines().count()),
            Err(wrong) => prop_assert!(wrong.line >= 1 && wrong.line <= text.lines().count()),
        }
    }
}

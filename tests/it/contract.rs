//! Which tests prove which section of the contract with Umami's clients and dashboard.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use integration_tests::repository;

/// Sections that no test proves yet. To take one out, name its tests in [`SECTIONS`].
const PENDING: &[&str] = &[];

/// A section, what it is about, the tests that prove it, and what else is to be said; in the contract's order.
///
/// A test is named by package, module and function: `it::answers::…` stands in `tests/it/answers.rs`,
/// `domain::agent::bot::…` in `crates/domain/src/agent/bot.rs`, `domain::fold::…` also in `crates/domain/tests/fold.rs`.
/// `tracker::test/token::…` is the title of a test in `tracker/test/token.test.mjs`.
/// A section without tests needs a reason why it does not concern the collection side, or is pending.
type Section = (&'static str, &'static str, &'static [&'static str], &'static str);

const SECTIONS: &[Section] = &[
    (
        "1",
        "Endpoints",
        &[
            "it::answers::every_answer_of_the_api_has_the_cross_origin_headers",
            "it::answers::a_trailing_slash_is_redirected_and_unknown_paths_are_not_found",
        ],
        "",
    ),
    (
        "1.1",
        "HTTP behaviour of the API",
        &[
            "it::answers::every_answer_of_the_api_has_the_cross_origin_headers",
            "it::answers::the_maximum_age_of_a_preflight_is_a_setting",
            "it::answers::a_trailing_slash_is_redirected_and_unknown_paths_are_not_found",
            "it::answers::bodies_are_read_as_utf_8_whatever_their_type",
            "it::answers::a_body_above_its_bound_is_refused",
            "it::answers::a_client_that_sends_up_to_twice_the_bound_reads_its_refusal",
            "domain::json::keys_are_enumerated_as_javascript_does",
            "it::vectors::every_kind_of_leaf_is_stored_in_its_columns",
        ],
        "a body that is too long is answered 413, not cut and answered 400",
    ),
    (
        "2",
        "POST /api/send: request",
        &[
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
            "ingest::decide::any_body_is_refused_as_documented_or_makes_a_whole_event",
            "domain::corpus::every_body_of_the_corpus_is_refused_as_documented_or_makes_a_whole_event",
            "domain::submission::a_full_submission_is_read_field_by_field",
            "domain::submission::every_wrong_field_has_its_text",
            "domain::submission::exactly_one_source_is_required_unless_a_type_is_wrong",
            "domain::submission::a_timestamp_is_coerced_by_javascripts_number",
            "domain::submission::lengths_are_counted_in_utf16_units",
            "domain::submission::uuids_follow_the_rule_of_zod",
            "domain::submission::urls_are_what_whatwg_parses_against_localhost",
            "it::answers::links_and_pixels_are_not_looked_up",
        ],
        "",
    ),
    ("3.1", "Order of checks", &["it::answers::checks_are_made_in_umamis_order"], ""),
    (
        "3.2",
        "Success",
        &[
            "it::answers::a_token_in_the_answer_is_umamis_to_the_letter",
            "it::answers::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "it::sessions::every_type_of_event_alone_makes_the_session",
        ],
        "",
    ),
    (
        "3.3",
        "Errors",
        &[
            "it::answers::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "domain::submission::the_examples_of_the_contract_get_their_answers",
            "domain::submission::errors_come_in_the_order_of_the_schema_not_of_the_body",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
        ],
        "",
    ),
    (
        "3.4",
        "Requests that Umami answers 500",
        &[
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "it::vectors::what_umami_fails_on_is_stored_within_the_columns_bounds",
            "domain::fold::where_umami_fails_a_row_that_fits_is_written",
            "it::geography::a_database_that_comes_changes_and_breaks_is_followed",
            "it::answers::blocked_addresses_are_refused_and_others_are_not",
        ],
        "",
    ),
    (
        "4",
        "POST /api/batch",
        &[
            "it::answers::a_batch_answers_for_each_of_its_elements",
            "it::answers::a_large_batch_is_applied_whole",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
            "domain::submission::a_batch_is_an_array_of_objects",
            "ingest::answer::a_batchs_token_is_the_first_one_null_without_success_and_absent_after_bots",
        ],
        "",
    ),
    (
        "5",
        "Cache token",
        &[
            "it::answers::a_token_in_the_answer_is_umamis_to_the_letter",
            "it::answers::a_token_keeps_the_visit_and_its_beginning",
            "it::answers::a_token_vouches_for_its_own_website_only",
            "it::answers::a_removed_website_takes_no_events_but_with_a_token",
            "it::vectors::without_a_secret_the_text_of_database_url_is_the_secret",
            "domain::token::other_hs_algorithms_and_time_bounds_are_honoured",
            "domain::token::a_bad_token_is_no_token",
        ],
        "",
    ),
    ("6.1", "Identifiers: primitives", &["domain::ids::every_recorded_id_is_computed"], ""),
    (
        "6.2",
        "Identifiers: times",
        &[
            "it::vectors::rotation_and_time_zone_decide_the_salts",
            "it::vectors::umamis_own_variables_decide_the_salts_too",
            "domain::calendar::prints_as_javascript_does",
            "domain::calendar::utc_arithmetic_agrees_with_the_calendar",
        ],
        "",
    ),
    (
        "6.3",
        "Session id",
        &[
            "it::vectors::every_recorded_id_of_the_usual_settings_is_answered_and_stored",
            "it::vectors::without_address_and_agent_the_session_is_that_of_empty_texts",
        ],
        "",
    ),
    (
        "6.4",
        "Visit id",
        &[
            "it::vectors::every_recorded_id_of_the_usual_settings_is_answered_and_stored",
            "it::answers::a_token_keeps_the_visit_and_its_beginning",
            "it::answers::a_visit_ends_half_an_hour_after_its_start",
            "domain::ids::a_visit_ends_half_an_hour_after_its_start_and_not_with_its_own_timestamp",
        ],
        "",
    ),
    (
        "6.5",
        "Other ids",
        &[
            "domain::fold::rows_of_an_event_carry_its_time_and_ids",
            "it::copies::copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each",
            "it::copies::a_copy_in_another_partition_of_a_topic_that_grew_changes_nothing",
        ],
        "computed where Umami's are random, so that a copy and a replay find them again",
    ),
    (
        "6.6",
        "Worked vectors",
        &["domain::ids::every_recorded_id_is_computed", "domain::token::issues_the_recorded_token"],
        "",
    ),
    (
        "7.1",
        "User agent",
        &[
            "it::vectors::an_agents_header_is_read_as_latin_1",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "7.2",
        "Address",
        &[
            "it::answers::the_clients_address_comes_from_the_first_header_that_has_one",
            "it::answers::a_configured_header_goes_before_all_and_is_taken_whole",
            "it::proxies::unless_proxies_are_named_everybody_is_believed_as_in_umami",
            "it::proxies::only_a_trusted_proxy_says_who_the_client_is_and_where",
            "domain::client_address::addresses_get_their_canonical_form_and_lose_their_port",
        ],
        "",
    ),
    (
        "7.3",
        "Browser and operating system",
        &[
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
            "domain::agent::mod::the_recorded_answers_of_umami_are_given",
            "domain::agent::mod::agents_seen_in_the_wild_get_the_names_the_original_gives_them",
            "domain::agent::os::every_windows_nt_has_its_name",
            "it::sessions::the_first_events_attributes_stay_and_later_ones_fill_what_was_null",
        ],
        "",
    ),
    (
        "7.4",
        "Device",
        &[
            "domain::agent::device::a_desktop_with_a_narrow_screen_is_a_laptop",
            "domain::agent::device::the_screen_changes_nothing_but_desktops",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "7.5",
        "Bot check",
        &[
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
            "it::vectors::bots_are_taken_where_they_are_welcome",
            "domain::agent::bot::phones_and_apps_with_telling_letters_in_their_names_are_no_bots",
        ],
        "",
    ),
    (
        "7.6",
        "Blocked addresses",
        &[
            "it::answers::blocked_addresses_are_refused_and_others_are_not",
            "domain::client_address::blocking_is_by_equal_text_or_by_network_of_the_same_family",
        ],
        "",
    ),
    (
        "7.7",
        "Location",
        &[
            "it::geography::an_address_is_where_the_database_says",
            "it::geography::a_providers_headers_go_before_the_database_and_in_their_order",
            "it::geography::skipped_location_headers_leave_the_database",
            "it::answers::a_proxys_location_counts_for_public_addresses_it_names",
            "domain::location::private_and_own_addresses_are_local",
        ],
        "",
    ),
    (
        "8",
        "Session row",
        &[
            "it::sessions::every_type_of_event_alone_makes_the_session",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::sessions::two_hundred_first_events_at_once_make_one_session",
            "it::sessions::the_first_events_attributes_stay_and_later_ones_fill_what_was_null",
            "domain::fold::a_session_row_exists_if_and_only_if_an_event_was_applied",
        ],
        "",
    ),
    (
        "9.1",
        "website_event: event",
        &[
            "it::vectors::every_recorded_event_gives_its_row",
            "domain::page_url::event_columns_are_those_of_umami",
            "domain::page_url::tracking_parameters_are_the_first_of_their_name_form_decoded",
            "domain::page_url::every_column_is_cut_to_its_width",
            "domain::page_url::one_trailing_slash_can_be_removed",
            "domain::text::decoders_agree_with_javascript",
        ],
        "",
    ),
    (
        "9.2",
        "website_event: performance",
        &[
            "it::vectors::every_recorded_event_gives_its_row",
            "domain::page_url::performance_paths_are_those_of_umami",
        ],
        "",
    ),
    ("9.3", "website_event: identify", &["it::sessions::every_type_of_event_alone_makes_the_session"], ""),
    (
        "9.4",
        "Order and atomicity",
        &[
            "it::crash::a_commit_that_is_left_at_any_step_is_in_whole_or_not_at_all",
            "it::crash::a_commit_whose_connection_dies_at_any_statement_is_not_in_at_all",
            "it::store_contract::a_dropped_commit_is_whole_or_not_at_all",
        ],
        "all rows of an event commit as one",
    ),
    (
        "10",
        "event_data",
        &[
            "it::vectors::every_recorded_data_gives_its_rows",
            "it::vectors::every_kind_of_leaf_is_stored_in_its_columns",
            "domain::flatten::dates_are_read_as_v8_does",
            "domain::flatten::fixed_decimals_are_those_of_javascript",
        ],
        "",
    ),
    (
        "11",
        "session_data",
        &[
            "it::sessions::a_property_has_its_last_value_and_the_others_stay",
            "it::sessions::of_conflicting_identifies_the_last_in_the_log_stays",
            "it::sessions::ten_thousand_identifies_at_once_leave_one_row_per_key",
            "it::sessions::an_identify_before_twenty_page_views_makes_one_session_with_all_its_properties",
            "it::store_contract::a_property_that_umami_wrote_is_updated_in_place",
            "it::store_contract::doubled_properties_of_a_session_are_updated_alike",
        ],
        "",
    ),
    (
        "12",
        "revenue",
        &[
            "it::vectors::every_recorded_data_gives_its_rows",
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "domain::flatten::revenue_needs_a_positive_amount_and_a_currency",
        ],
        "",
    ),
    (
        "13",
        "Pixels GET /p and links GET /q",
        &[
            "it::visits::a_link_leads_on_and_its_visit_is_an_event",
            "it::visits::a_pixel_is_a_picture_and_its_visit_is_an_event",
            "it::visits::a_removed_link_leads_nowhere_and_its_slug_stays_taken",
            "it::visits::a_link_that_is_no_url_is_recorded_and_answered_500",
            "it::visits::who_follows_a_link_does_not_wait_for_the_log",
        ],
        "a HEAD does not count, what is removed is not found",
    ),
    (
        "14",
        "POST /api/record",
        &[
            "it::recordings::answers_come_in_umamis_order",
            "it::recordings::chunks_of_one_second_keep_their_order_and_their_events",
            "it::recordings::a_copy_of_a_named_chunk_is_stored_once",
            "domain::recording::what_does_not_fit_is_answered_as_zod_would",
            "domain::recording::the_times_are_those_of_the_events_or_the_chunks",
        ],
        "",
    ),
    (
        "15",
        "PostgreSQL schema",
        &[
            "it::store_contract::every_column_is_written_as_it_is",
            "it::store_contract::nothing_but_the_schema_dashi_is_made",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
            "store::postgres::mod::prismas_parameters_are_taken_out_of_a_url",
        ],
        "",
    ),
    (
        "16",
        "What the dashboard's queries assume",
        &[
            "it::dashboard::the_dashboard_adds_up",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::answers::a_removed_website_takes_no_events_but_with_a_token",
        ],
        "",
    ),
    (
        "17",
        "Redis",
        &[],
        "a cache of Umami's own; Dashi keeps its list of websites in memory and reads no REDIS_URL",
    ),
    (
        "18",
        "Umami's ClickHouse and Kafka mode",
        &[],
        "its topics hold no sessions and their consumer is not public; Dashi neither writes nor reads them",
    ),
    (
        "19.1",
        "Tracker script",
        &[
            "tracker::test/attributes::a page view is sent when the page is complete, with the base payload",
            "tracker::test/attributes::data-host-url is the base of the endpoint",
            "tracker::test/attributes::data-do-not-track=true honours the browser's wish in each of its forms",
            "tracker::test/attributes::data-before-send cancels with anything falsy, by throwing and by rejecting",
            "tracker::test/attributes::data-exclude-search and data-exclude-hash strip url and referrer",
            "tracker::test/api::track(name, data) sends data with it, as it is at the call",
            "tracker::test/api::identify(id, data) and identify(data) send data; only a text becomes the id",
            "tracker::test/api::getSession() gives token and website",
            "tracker::test/token::a bad answer never drops the token",
            "tracker::test/token::a late answer never restores an older identity",
            "tracker::test/delivery::an event is tried again after a network error, 408, 429 and 5xx, with the same messageId",
            "tracker::test/delivery::events survive reload and crash, and keep their order and time",
            "tracker::e2e/tracker::a site of several pages: views, clicks, custom events, identify, vitals",
            "tracker::e2e/tracker::a single-page app: navigation, back and forward, anchors, vitals per view",
            "tracker::e2e/tracker::Dashi is killed with events under way, again and again: nothing lost, nothing doubled",
        ],
        "run by scripts/tracker, after these tests",
    ),
    (
        "19.2",
        "Recorder",
        &["it::recordings::answers_come_in_umamis_order"],
        "Umami's own recorder works unchanged; Dashi has none",
    ),
    (
        "19.3",
        "@umami/node",
        &[
            "it::clients::what_umamis_client_for_node_sends_is_taken_as_one_session",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "20 (scripts)",
        "Static files",
        &[
            "it::script::the_script_is_served_as_umamis_is",
            "it::script::the_endpoint_has_the_name_that_the_operator_gives_it",
            "it::script::another_script_can_stand_in_for_ours",
            "ingest::script::a_client_that_has_it_is_told_so",
            "tracker::e2e/tracker::Dashi serves the script that is checked in, and lets it read Retry-After",
        ],
        "no recorder.js",
    ),
    (
        "20 (environment)",
        "Environment names",
        &[
            "it::proxies::an_environment_of_umamis_is_understood_whole",
            "it::geography::skipped_location_headers_leave_the_database",
            "it::vectors::umamis_own_variables_decide_the_salts_too",
            "cli::config::layer::umamis_names_are_read_and_ours_win_over_them",
            "cli::config::layer::an_empty_variable_counts_as_not_set",
        ],
        "those that concern what Dashi serves",
    ),
    (
        "21",
        "Export and import",
        &[],
        "aggregates of the dashboard, behind its login; Umami has no raw export and no import",
    ),
    (
        "22",
        "Older versions",
        &[
            "it::umami_databases::on_3_0",
            "it::umami_databases::tables_older_than_those_of_3_0_are_named_and_nothing_is_made",
        ],
        "",
    ),
    (
        "23",
        "After the reference version",
        &[
            "it::umami_databases::on_3_3",
            "it::umami_databases::a_start_after_an_upgrade_goes_on_with_the_new_tables",
            "it::umami_databases::with_ids_per_device_a_visit_ends_with_its_session",
            "it::umami_databases::a_formula_that_is_set_is_used_and_told_when_it_is_not_umamis",
        ],
        "",
    ),
    (
        "24",
        "Where a replacement may differ",
        &[
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "it::outage::a_database_outage_delays_rows_only_with_an_embedded_log",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::copies::copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each",
            "it::crash::a_commit_that_is_left_at_any_step_is_in_whole_or_not_at_all",
            "it::vectors::every_recorded_event_gives_its_row",
            "it::answers::a_token_vouches_for_its_own_website_only",
            "it::answers::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "it::answers::links_and_pixels_are_not_looked_up",
            "it::answers::a_token_in_the_answer_is_umamis_to_the_letter",
        ],
        "one test for each of its ten points",
    ),
    (
        "25",
        "User-agent vectors",
        &[
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
            "domain::agent::mod::the_recorded_answers_of_umami_are_given",
        ],
        "",
    ),
];

/// The source file of a test's module: the first of those in which it may be.
fn source(module: &str) -> Option<PathBuf> {
    let (package, path) = module.split_once("::")?;
    let path = path.replace("::", "/");
    let candidates = match package {
        "it" => vec![format!("tests/it/{path}.rs")],
        package => {
            vec![format!("crates/{package}/src/{path}.rs"), format!("crates/{package}/tests/{path}.rs")]
        }
    };
    // Of two files with one name, the one that has the function is meant; the caller looks in both.
    candidates.iter().map(|file| repository().join(file)).find(|file| file.exists())
}

/// Why this is no test that runs, if it is none.
fn missing(test: &str) -> Option<String> {
    if let Some((file, title)) = test.strip_prefix("tracker::").and_then(|test| test.split_once("::")) {
        let file = repository().join("tracker").join(format!("{file}.test.mjs"));
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = text.lines().any(|line| line.trim_start().starts_with(&format!("test({title:?}")));
        return (!found).then(|| format!("{test}: there is no such test in {}", file.display()));
    }
    let (module, function) = test.rsplit_once("::")?;
    let Some(first) = source(module) else { return Some(format!("{test}: there is no such module")) };
    let beside = first.to_string_lossy().replace("/src/", "/tests/");
    let found = [first.clone(), PathBuf::from(beside)].iter().any(|file| is_test(file, function));
    (!found).then(|| format!("{test}: there is no such test in {}", first.display()))
}

/// Whether a file has a function of this name that is a test: by its attribute, as a property, or by a list of a macro
/// that makes tests.
fn is_test(file: &Path, function: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else { return false };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let head = format!("fn {function}(");
    let Some(place) = lines.iter().position(|line| line.contains(&head)) else { return false };
    let listed = lines.iter().any(|line| {
        line.strip_suffix(',') == Some(function)
            || line.strip_prefix("on_both_setups!(").is_some_and(|list| list.contains(function))
    });
    let above =
        lines[..place].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<_> = above.filter(|line| line.starts_with("#[")).collect();
    let marked =
        attributes.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    let ignored = attributes.iter().any(|line| line.starts_with("#[ignore"));
    (marked || listed) && !ignored
}

/// The table as people read it.
fn table() -> String {
    let mut out = String::from("\nThe contract with Umami's clients and dashboard, and what proves it:\n");
    for (number, title, tests, note) in SECTIONS {
        let state = match (tests.len(), PENDING.contains(number)) {
            (_, true) => "PENDING".to_owned(),
            (0, false) => "not the collection side".to_owned(),
            (1, false) => "1 test".to_owned(),
            (count, false) => format!("{count} tests"),
        };
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        writeln!(out, "  §{number} {title}: {state}{note}").expect("a text can be written to");
        for test in *tests {
            writeln!(out, "      {test}").expect("a text can be written to");
        }
    }
    let pending: Vec<_> = PENDING.iter().map(|number| format!("§{number}")).collect();
    writeln!(out, "  pending: {}", if pending.is_empty() { "none".to_owned() } else { pending.join(", ") })
        .expect("a text can be written to");
    out
}

#[test]
fn every_section_of_the_contract_has_tests_that_exist_or_a_reason() {
    // Past the capture of a passing test's output: this is meant to be read.
    io::stderr().write_all(table().as_bytes()).expect("standard error is open");

    let numbers: Vec<&str> = SECTIONS.iter().map(|(number, ..)| *number).collect();
    let unique: BTreeSet<_> = numbers.iter().collect();
    assert_eq!(unique.len(), numbers.len(), "a section is there twice");
    let top = |number: &&str| number.split(['.', ' ']).next().and_then(|top| top.parse::<u32>().ok());
    let tops: BTreeSet<_> = numbers.iter().filter_map(top).collect();
    assert_eq!(tops, (1..=25).collect(), "the contract has 25 sections");
    let unproved: BTreeSet<_> = SECTIONS
        .iter()
        .filter(|(_, _, tests, note)| tests.is_empty() && note.is_empty())
        .map(|(number, ..)| *number)
        .collect();
    assert_eq!(
        unproved,
        PENDING.iter().copied().collect(),
        "left: without tests or a reason, right: pending"
    );
    let missing: Vec<_> =
        SECTIONS.iter().flat_map(|(_, _, tests, _)| *tests).filter_map(|test| missing(test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn what_is_no_test_does_not_prove_anything() {
    for name in [
        "it::contract::table",
        "it::contract::no_such_function",
        "it::no_such_module::a_test",
        "domain::fold::unique",
        "nowhere::fold::a_test",
        "tracker::test/token::no such title",
    ] {
        assert!(missing(name).is_some(), "{name}");
    }
    assert_eq!(missing("it::contract::what_is_no_test_does_not_prove_anything"), None);
}

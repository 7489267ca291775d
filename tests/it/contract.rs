//! The tests of each section of the contract with Umami's clients and dashboard, docs/umami-contract.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::{fs, io};

use integration_tests::repository;

use crate::proofs::missing;

/// A section of the document by its number, the tests that prove it (named as `proofs` says), and what else is to be
/// said; in the document's order. A section without tests needs a reason why Dashi has no part in it.
type Row = (&'static str, &'static [&'static str], &'static str);

const SECTIONS: &[Row] = &[
    (
        "1",
        &[
            "it::answers::headers::every_answer_of_the_api_has_the_cross_origin_headers",
            "it::answers::headers::a_trailing_slash_is_redirected_and_unknown_paths_are_not_found",
        ],
        "",
    ),
    (
        "1.1",
        &[
            "it::answers::headers::every_answer_of_the_api_has_the_cross_origin_headers",
            "it::answers::headers::the_maximum_age_of_a_preflight_is_a_setting",
            "it::answers::headers::a_trailing_slash_is_redirected_and_unknown_paths_are_not_found",
            "it::answers::bad_input::bodies_are_read_as_utf_8_whatever_their_type",
            "it::answers::limits::a_body_above_its_bound_is_refused",
            "it::answers::limits::a_client_that_sends_up_to_twice_the_bound_reads_its_refusal",
            "domain::json::keys_are_enumerated_as_javascript_does",
            "it::vectors::every_kind_of_leaf_is_stored_in_its_columns",
        ],
        "a body that is too long is answered 413, not cut and answered 400",
    ),
    (
        "2",
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
            "it::answers::sources::links_and_pixels_are_not_looked_up",
        ],
        "",
    ),
    ("3.1", &["it::answers::bad_input::checks_are_made_in_umamis_order"], ""),
    (
        "3.2",
        &[
            "it::answers::tokens::a_token_in_the_answer_is_umamis_to_the_letter",
            "it::answers::bad_input::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "it::sessions::every_type_of_event_alone_makes_the_session",
        ],
        "",
    ),
    (
        "3.3",
        &[
            "it::answers::bad_input::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "domain::submission::the_examples_of_the_contract_get_their_answers",
            "domain::submission::errors_come_in_the_order_of_the_schema_not_of_the_body",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
        ],
        "",
    ),
    (
        "3.4",
        &[
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "it::vectors::what_umami_fails_on_is_stored_within_the_columns_bounds",
            "domain::fold::where_umami_fails_a_row_that_fits_is_written",
            "it::geography::a_database_that_comes_changes_and_breaks_is_followed",
            "it::answers::addresses::blocked_addresses_are_refused_and_others_are_not",
        ],
        "",
    ),
    (
        "4",
        &[
            "it::answers::bad_input::a_batch_answers_for_each_of_its_elements",
            "it::answers::limits::a_large_batch_is_applied_whole",
            "it::hostile::ten_million_bytes_of_elements_are_refused_with_the_number_that_may_be",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
            "domain::submission::a_batch_is_an_array_of_objects",
            "ingest::answer::a_batchs_token_is_the_first_one_null_without_success_and_absent_after_bots",
        ],
        "",
    ),
    (
        "5",
        &[
            "it::answers::tokens::a_token_in_the_answer_is_umamis_to_the_letter",
            "it::answers::tokens::a_token_keeps_the_visit_and_its_beginning",
            "it::answers::tokens::a_token_vouches_for_its_own_website_only",
            "it::answers::sources::a_removed_website_takes_no_events_but_with_a_token",
            "it::vectors::without_a_secret_the_text_of_database_url_is_the_secret",
            "domain::token::other_hs_algorithms_and_time_bounds_are_honoured",
            "domain::token::a_bad_token_is_no_token",
        ],
        "",
    ),
    ("6.1", &["domain::ids::every_recorded_id_is_computed"], ""),
    (
        "6.2",
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
        &[
            "it::vectors::every_recorded_id_of_the_usual_settings_is_answered_and_stored",
            "it::vectors::without_address_and_agent_the_session_is_that_of_empty_texts",
            "it::umami_databases::on_3_1",
            "it::umami_databases::on_3_3",
            "it::umami_databases::on_3_4",
        ],
        "",
    ),
    (
        "6.4",
        &[
            "it::vectors::every_recorded_id_of_the_usual_settings_is_answered_and_stored",
            "it::answers::tokens::a_token_keeps_the_visit_and_its_beginning",
            "it::answers::tokens::a_visit_ends_half_an_hour_after_its_start",
            "domain::ids::a_visit_ends_half_an_hour_after_its_start_and_not_with_its_own_timestamp",
        ],
        "",
    ),
    (
        "6.5",
        &[
            "domain::fold::rows_of_an_event_carry_its_time_and_ids",
            "it::copies::copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each",
            "it::copies::a_copy_in_another_partition_of_a_topic_that_grew_changes_nothing",
        ],
        "computed where Umami's are random, so that a copy and a replay find them again",
    ),
    ("6.6", &["domain::ids::every_recorded_id_is_computed", "domain::token::issues_the_recorded_token"], ""),
    (
        "7.1",
        &[
            "it::vectors::an_agents_header_is_read_as_latin_1",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "7.2",
        &[
            "it::answers::addresses::the_clients_address_comes_from_the_first_header_that_has_one",
            "it::answers::addresses::a_configured_header_goes_before_all_and_is_taken_whole",
            "it::proxies::unless_proxies_are_named_everybody_is_believed_as_in_umami",
            "it::proxies::only_a_trusted_proxy_says_who_the_client_is_and_where",
            "domain::client_address::addresses_get_their_canonical_form_and_lose_their_port",
        ],
        "",
    ),
    (
        "7.3",
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
        &[
            "domain::agent::device::a_desktop_with_a_narrow_screen_is_a_laptop",
            "domain::agent::device::the_screen_changes_nothing_but_desktops",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "7.5",
        &[
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
            "it::vectors::bots_are_taken_where_they_are_welcome",
            "domain::agent::bot::phones_and_apps_with_telling_letters_in_their_names_are_no_bots",
        ],
        "",
    ),
    (
        "7.6",
        &[
            "it::answers::addresses::blocked_addresses_are_refused_and_others_are_not",
            "domain::client_address::blocking_is_by_equal_text_or_by_network_of_the_same_family",
        ],
        "",
    ),
    (
        "7.7",
        &[
            "it::geography::an_address_is_where_the_database_says",
            "it::geography::a_providers_headers_go_before_the_database_and_in_their_order",
            "it::geography::skipped_location_headers_leave_the_database",
            "it::answers::addresses::a_proxys_location_counts_for_public_addresses_it_names",
            "domain::location::private_and_own_addresses_are_local",
        ],
        "",
    ),
    (
        "8",
        &[
            "it::sessions::every_type_of_event_alone_makes_the_session",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::sessions::two_hundred_first_events_at_once_make_one_session",
            "it::sessions::the_first_events_attributes_stay_and_later_ones_fill_what_was_null",
            "it::sessions::a_session_is_of_one_device_and_one_place",
            "domain::session::no_row_has_parts_of_a_group_from_two_events",
            "domain::fold::a_session_row_exists_if_and_only_if_an_event_was_applied",
        ],
        "",
    ),
    (
        "9",
        &[
            "it::vectors::every_recorded_event_gives_its_row",
            "it::visits::a_link_leads_on_and_its_visit_is_an_event",
            "it::visits::a_pixel_is_a_picture_and_its_visit_is_an_event",
            "it::sessions::every_type_of_event_alone_makes_the_session",
        ],
        "",
    ),
    (
        "9.1",
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
        &[
            "it::vectors::every_recorded_event_gives_its_row",
            "domain::page_url::performance_paths_are_those_of_umami",
        ],
        "",
    ),
    ("9.3", &["it::sessions::every_type_of_event_alone_makes_the_session"], ""),
    (
        "9.4",
        &[
            "it::crash::a_commit_that_is_left_at_any_step_is_in_whole_or_not_at_all",
            "it::crash::a_commit_whose_connection_dies_at_any_statement_is_not_in_at_all",
            "it::store_contract::ownership::a_dropped_commit_is_whole_or_not_at_all",
        ],
        "all rows of an event commit as one",
    ),
    (
        "10",
        &[
            "it::vectors::every_recorded_data_gives_its_rows",
            "it::vectors::every_kind_of_leaf_is_stored_in_its_columns",
            "domain::dates::dates_are_read_as_v8_does",
            "domain::javascript::fixed_decimals_are_those_of_javascript",
        ],
        "",
    ),
    (
        "11",
        &[
            "it::sessions::a_property_has_its_last_value_and_the_others_stay",
            "it::sessions::of_conflicting_identifies_the_last_in_the_log_stays",
            "it::sessions::ten_thousand_identifies_at_once_leave_one_row_per_key",
            "it::sessions::an_identify_before_twenty_page_views_makes_one_session_with_all_its_properties",
            "it::store_contract::properties::a_property_that_umami_wrote_is_updated_in_place",
            "it::store_contract::properties::doubled_properties_of_a_session_are_updated_alike",
        ],
        "",
    ),
    (
        "12",
        &[
            "it::vectors::every_recorded_data_gives_its_rows",
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "domain::flatten::revenue_needs_a_positive_amount_and_a_currency",
        ],
        "",
    ),
    (
        "13",
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
        &[
            "it::recordings::answers_come_in_umamis_order",
            "it::recordings::chunks_of_one_second_keep_their_order_and_their_events",
            "it::recordings::a_copy_of_a_named_chunk_is_stored_once",
            "domain::chunk::what_does_not_fit_is_answered_as_zod_would",
            "domain::chunk::the_times_are_those_of_the_events_or_the_chunks",
            "domain::heatmap::a_click_of_a_chunk_is_filed_under_the_page_before_it",
            "domain::heatmap::a_post_gives_a_row_per_event",
            "domain::heatmap::a_post_that_does_not_fit_is_answered_as_zod_would",
            "it::recorder::on_3_2_the_settings_say_what_is_taken",
            "it::recorder::before_3_2_clicks_and_scrolls_are_read_out_of_recordings",
            "it::recorder::the_recorder_is_told_its_settings_from_anywhere",
        ],
        "",
    ),
    (
        "15",
        &[
            "it::store_contract::rows::every_column_is_written_as_it_is",
            "it::store_contract::catalogue::nothing_but_the_schema_dashi_is_made",
            "it::any_body::any_body_is_refused_as_documented_or_is_one_whole_event_in_the_tables",
            "store::postgres::address::parameters_of_other_clients_are_heeded",
        ],
        "",
    ),
    (
        "16",
        &[
            "it::dashboard::the_dashboard_adds_up",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::answers::sources::a_removed_website_takes_no_events_but_with_a_token",
        ],
        "",
    ),
    ("17", &[], "a cache of Umami's own; Dashi keeps its list of websites in memory and reads no REDIS_URL"),
    (
        "18",
        &[],
        "its topics hold no sessions and their consumer is not public; Dashi neither writes nor reads them",
    ),
    (
        "19.1",
        &[
            "tracker::test/attributes::a page view is sent when the page is complete, with the base payload",
            "tracker::test/attributes::data-host-url is the base of the endpoint",
            "tracker::test/attributes::data-do-not-track=true honours the browser's wish in each of its forms",
            "tracker::test/attributes::data-before-send cancels with anything falsy, by throwing and by rejecting",
            "tracker::test/attributes::data-exclude-search and data-exclude-hash strip url and referrer",
            "tracker::test/attributes::data-auto-pageview=false sends no page view until it is asked for, and all else as ever",
            "tracker::test/attributes::data-distinct-id is the id from the first page view on, until identify names another",
            "tracker::test/attributes::the referrer of the page's own origin is not sent, one that only begins like it is",
            "tracker::test/clicks::a click below any ancestor with data-umami-event counts, once and for the closest",
            "tracker::test/clicks::of elements within each other the innermost with a name counts",
            "tracker::test/api::track(name, data) sends data with it, as it is at the call",
            "tracker::test/api::identify(id, data) and identify(data) send data; only a text becomes the id",
            "tracker::test/api::identify({ id, … }) takes the id out of the object, if it is a text, and leaves the page's object alone",
            "tracker::test/api::getSession() gives token and website",
            "tracker::test/token::a bad answer never drops the token",
            "tracker::test/token::a late answer never restores an older identity",
            "tracker::test/delivery::an event is tried again after a network error, 408, 429 and 5xx, with the same messageId",
            "tracker::test/delivery::each event of a batch has its own verdict: taken, dropped with a warning, or sent again by itself",
            "tracker::test/delivery::a batch that fails as a whole, or whose answer tells nothing of its events, is sent one by one",
            "tracker::test/vitals::10 s after load what has been measured is sent, once, on top of the base payload",
            "tracker::test/delivery::events survive reload and crash, and keep their order and time",
            "tracker::e2e/tracker::a site of several pages: views, clicks, custom events, identify, vitals",
            "tracker::e2e/tracker::a click counts below any element with data-umami-event, once, for the closest",
            "tracker::e2e/tracker::data-auto-pageview=false: no page view until the page asks for one, and clicks as ever",
            "tracker::e2e/tracker::data-distinct-id names the visitor from the first view on, identify({ id, … }) another",
            "tracker::e2e/tracker::events of a batch that there was no room for are sent one by one, and those that were taken are not",
            "tracker::e2e/tracker::a single-page app: navigation, back and forward, anchors, vitals per view",
            "tracker::e2e/tracker::Dashi is killed with events under way, again and again: nothing lost, nothing doubled",
        ],
        "run by scripts/tracker, after these tests",
    ),
    (
        "19.2",
        &["it::recordings::answers_come_in_umamis_order"],
        "Umami's own recorder works unchanged; Dashi has none",
    ),
    (
        "19.3",
        &[
            "it::clients::what_umamis_client_for_node_sends_is_taken_as_one_session",
            "it::clients::what_clients_for_python_send_is_taken_as_their_visitors",
            "tracker::e2e/node::@umami/node: every call gives its rows",
            "tracker::e2e/python::umami-analytics: every call gives its rows",
            "tracker::e2e/python::umami-asgi: each request of an application is a page view of who made it",
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
        ],
        "",
    ),
    (
        "20.1",
        &[
            "it::script::the_script_is_served_as_umamis_is",
            "it::script::the_further_files_are_served_beside_every_name_of_the_script",
            "tracker::test/vitals::the file that measures is loaded where it is asked for only, from beside the script, under any name of that",
            "it::script::the_endpoint_has_the_name_that_the_operator_gives_it",
            "it::script::another_script_can_stand_in_for_ours",
            "ingest::script::a_client_that_has_it_is_told_so",
            "tracker::e2e/tracker::Dashi serves the script that is checked in, and lets it read Retry-After",
        ],
        "no recorder.js",
    ),
    (
        "20.2",
        &[
            "it::proxies::an_environment_of_umamis_is_understood_whole",
            "it::geography::skipped_location_headers_leave_the_database",
            "it::vectors::umamis_own_variables_decide_the_salts_too",
            "config::layer::tests::umamis_names_are_read_and_ours_win_over_them",
            "config::layer::tests::an_empty_variable_counts_as_not_set",
        ],
        "those that concern what Dashi serves",
    ),
    ("21", &[], "aggregates of the dashboard, behind its login; Umami has no raw export and no import"),
    (
        "22",
        &[
            "it::umami_databases::on_3_0",
            "it::umami_databases::tables_older_than_those_of_3_0_are_named_and_nothing_is_made",
        ],
        "",
    ),
    (
        "23",
        &[
            "it::umami_databases::on_3_2",
            "it::umami_databases::on_3_3",
            "it::umami_databases::on_3_4",
            "it::umami_databases::a_start_after_an_upgrade_goes_on_with_the_new_tables",
            "it::umami_databases::with_ids_per_device_a_visit_ends_with_its_session",
            "it::umami_databases::a_formula_that_is_set_is_used_and_told_when_it_is_not_umamis",
            "it::umami_databases::the_same_requests_give_each_versions_answers_and_rows",
            "it::umami_databases::a_file_has_the_rules_of_the_version_that_is_set",
            "it::umami_databases::in_a_linked_session_the_last_identify_names_it",
            "it::umami_databases::long_fields_are_cut_where_that_is_set",
            "domain::dates::from_3_2_on_a_date_needs_no_milliseconds_to_name_its_zone",
            "domain::page_url::from_3_3_on_a_page_is_not_its_own_referrer",
            "domain::page_url::from_3_3_on_the_root_keeps_its_slash_and_www_ends_with_a_dot",
            "domain::submission::texts_of_any_length_are_taken_where_they_are_cut",
            "domain::submission::names_and_tags_that_begin_as_formulas_are_refused_from_3_3_on",
            "domain::submission::from_3_4_on_a_timestamp_of_0_is_a_time",
        ],
        "",
    ),
    (
        "24",
        &[
            "it::vectors::every_line_of_umamis_failures_is_answered_and_stored",
            "it::outage::a_database_outage_delays_rows_only_with_an_embedded_log",
            "it::sessions::whatever_changes_while_a_token_is_kept_no_event_lacks_its_session",
            "it::copies::copies_in_a_batch_of_requests_and_after_a_restart_leave_one_row_each",
            "it::crash::a_commit_that_is_left_at_any_step_is_in_whole_or_not_at_all",
            "it::vectors::every_recorded_event_gives_its_row",
            "it::answers::tokens::a_token_vouches_for_its_own_website_only",
            "it::answers::bad_input::bad_input_of_every_kind_gets_its_answer_and_leaves_nothing_in_the_log",
            "it::answers::sources::links_and_pixels_are_not_looked_up",
            "it::answers::tokens::a_token_in_the_answer_is_umamis_to_the_letter",
        ],
        "one test for each of its ten points",
    ),
    (
        "25",
        &[
            "it::vectors::every_recorded_agent_is_detected_or_refused_as_a_bot",
            "domain::agent::mod::the_recorded_answers_of_umami_are_given",
        ],
        "",
    ),
];

/// A heading of the document.
struct Section {
    number: String,
    title: String,
    /// Whether it says anything outside the sections within it; then it needs a row.
    speaks: bool,
}

/// The document's sections, in its order.
fn sections() -> Vec<Section> {
    let path = repository().join("docs/umami-contract.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut sections: Vec<Section> = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        let heading = line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")).filter(|_| !in_code);
        if let Some(heading) = heading {
            let (number, title) = heading.split_once(' ').expect("a number and a title");
            let number = number.trim_end_matches('.').to_owned();
            assert!(
                number.split('.').all(|part| part.parse::<u8>().is_ok()),
                "a heading without number: {line}"
            );
            sections.push(Section { number, title: title.to_owned(), speaks: false });
        } else if let Some(section) = sections.last_mut() {
            section.speaks |= !line.trim().is_empty();
        }
    }
    sections
}

/// The table as people read it.
fn table(sections: &[Section]) -> String {
    let mut out = String::from("\nThe contract with Umami's clients and dashboard, and what proves it:\n");
    for Section { number, title, .. } in sections {
        let Some((_, tests, note)) = SECTIONS.iter().find(|(of, ..)| of == number) else { continue };
        let state = match tests.len() {
            0 => "no part of Dashi".to_owned(),
            1 => "1 test".to_owned(),
            count => format!("{count} tests"),
        };
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        writeln!(out, "  §{number} {title}: {state}{note}").expect("a text can be written to");
        for test in *tests {
            writeln!(out, "      {test}").expect("a text can be written to");
        }
    }
    out
}

#[test]
fn every_section_of_the_contract_has_tests_that_exist_or_a_reason() {
    let sections = sections();
    // Past the capture of a passing test's output: this is meant to be read.
    io::stderr().write_all(table(&sections).as_bytes()).expect("standard error is open");

    let numbers: BTreeSet<&str> = sections.iter().map(|section| section.number.as_str()).collect();
    assert_eq!(numbers.len(), sections.len(), "a number of docs/umami-contract.md is there twice");
    let rows: BTreeSet<&str> = SECTIONS.iter().map(|(number, ..)| *number).collect();
    assert_eq!(rows.len(), SECTIONS.len(), "a section has two rows");
    let nowhere: Vec<_> = rows.difference(&numbers).collect();
    assert!(nowhere.is_empty(), "rows of sections that docs/umami-contract.md does not have: {nowhere:?}");
    let without: Vec<_> = sections
        .iter()
        .filter(|section| section.speaks && !rows.contains(section.number.as_str()))
        .map(|section| format!("§{} {}", section.number, section.title))
        .collect();
    assert!(without.is_empty(), "sections of docs/umami-contract.md without a row: {without:#?}");
    let unproved: Vec<_> = SECTIONS
        .iter()
        .filter(|(_, tests, note)| tests.is_empty() && note.is_empty())
        .map(|(of, ..)| of)
        .collect();
    assert!(unproved.is_empty(), "neither tests nor a reason: {unproved:?}");
    let missing: Vec<_> =
        SECTIONS.iter().flat_map(|(_, tests, _)| *tests).filter_map(|test| missing(test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The files of code, tests and settings below `folder`.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !["target", "node_modules", "corpus", "out", "vectors"].contains(&name) {
            files(&path, found);
        } else if ["rs", "ts", "mjs", "sql", "toml"].iter().any(|kind| name.ends_with(&format!(".{kind}"))) {
            found.push(path);
        }
    }
}

/// The numbers that follow section signs in this line; none for those of RFCs.
fn mentioned(line: &str) -> Vec<&str> {
    let mut numbers = Vec::new();
    let mut before = "";
    for part in line.split('§') {
        if !before.is_empty()
            && !before.trim_end().rsplit(' ').nth(1).is_some_and(|word| word.ends_with("RFC"))
        {
            let number = part.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
            numbers.push(number.trim_end_matches('.'));
        }
        before = part;
    }
    // A sign that a number is written behind, as in a format text.
    numbers.retain(|number| !number.is_empty());
    numbers
}

/// Why this line names a section of the contract in a way that leads nowhere, if it does.
fn astray(line: &str, numbers: &BTreeSet<&str>) -> Option<String> {
    let lower = line.to_lowercase();
    let words = lower.contains("contract")
        && (lower.contains("section ") || lower.contains("sections "))
        && lower.split("section").nth(1).is_some_and(|rest| {
            rest.trim_start_matches('s').trim_start().starts_with(|c: char| c.is_ascii_digit())
        });
    if words {
        return Some("write it as docs/umami-contract.md §7.3".to_owned());
    }
    let mentioned = mentioned(line);
    if !mentioned.is_empty() && !line.contains("docs/umami-contract.md §") {
        return Some("write it as docs/umami-contract.md §7.3, on one line".to_owned());
    }
    mentioned
        .iter()
        .find(|number| !numbers.contains(**number))
        .map(|number| format!("docs/umami-contract.md has no §{number}"))
}

#[test]
fn every_section_that_code_and_tests_name_is_in_the_document() {
    let sections = sections();
    let numbers: BTreeSet<&str> = sections.iter().map(|section| section.number.as_str()).collect();
    let mut paths = Vec::new();
    for folder in ["crates", "tests", "tracker/src", "tracker/test", "tracker/e2e", "config"] {
        files(&repository().join(folder), &mut paths);
    }
    let mut wrong = BTreeMap::new();
    for path in paths.iter().filter(|path| !path.ends_with("tests/it/contract.rs")) {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (index, line) in text.lines().enumerate() {
            if let Some(why) = astray(line, &numbers) {
                wrong.insert(format!("{}:{}", path.display(), index + 1), why);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_section_that_is_named_in_another_way_is_seen() {
    let numbers = BTreeSet::from(["7.3", "25"]);
    for line in [
        "/// Source: docs/umami-contract.md §7.3 and §25.",
        "/// (RFC 9110 §13.1.3)",
        "/// The contract with the store.",
        "writeln!(out, \"§{number}\")",
    ] {
        assert_eq!(astray(line, &numbers), None, "{line}");
    }
    for line in [
        "/// Source: docs/umami-contract.md §7.9.",
        "/// Source: docs/umami-contract.md §7.3 and §26.",
        "/// Source: umami-contract §7.3.",
        "/// The rules of contract §7.3.",
        "/// §7.3",
        "/// Umami contract, section 7.3.",
        "/// sections 7 and 25 of the contract",
    ] {
        assert!(astray(line, &numbers).is_some(), "{line}");
    }
}

//! The promises of a store, one suite for every backend. Each file holds the promises of one subject.

mod catalogue;
mod fixture;
mod generations;
mod generations_postgres;
mod layouts;
mod letters;
mod outcomes;
mod ownership;
mod profiles;
mod properties;
mod rows;
mod sessions;
mod sources;

use catalogue::{
    an_upgrade_is_noticed_when_the_catalogue_is_old, an_upgrade_is_noticed_with_the_next_claim,
    migrating_again_and_at_once_changes_nothing, nothing_but_the_schema_dashi_is_made,
    tables_that_changed_are_written_as_they_are_now,
};
use fixture::StoreFixture;
use generations::{
    a_generation_is_made_filled_and_finished_beside_the_live_one, a_generation_that_is_behind_is_not_swapped,
    a_swap_fences_every_writer_once_and_can_be_reverted,
    a_swap_that_stops_at_any_step_is_done_wholly_later_or_was_done,
    foreign_rows_are_refused_kept_or_lost_as_it_is_said,
};
use layouts::{
    a_growth_is_committed_once_all_processes_have_acknowledged_it,
    a_partition_notes_the_last_barrier_that_it_has_passed,
};
use letters::{
    a_letter_that_is_tried_again_has_one_outcome_more_and_one_dead_fewer,
    late_records_give_the_rows_that_they_would_have_given_in_time,
    letters_are_listed_by_filters_and_in_pages, letters_that_are_not_as_they_were_read_are_not_written,
    letters_wait_behind_the_first_of_their_session,
};
use outcomes::{
    a_checkpoint_goes_back_and_dead_letters_of_the_other_records_stay,
    an_event_and_an_identify_with_one_id_are_one_event, applied_events_are_named_and_nothing_is_written,
    dead_letters_are_kept_with_their_place_and_reason,
    notes_of_spools_are_replaced_and_go_when_they_hold_nothing,
    of_two_partitions_with_one_event_one_applies_it, outcomes_add_up,
    ranges_of_what_is_missing_are_bounded_and_their_counts_are_not, what_a_store_holds_is_told,
    what_is_missing_is_noted_with_the_checkpoint_that_passes_it,
};
use ownership::{
    a_batch_for_a_locked_file_is_not_written_within_a_bounded_time, a_dropped_commit_is_whole_or_not_at_all,
    a_misplaced_batch_is_refused_and_told_where_to_go_on, a_repeated_commit_changes_nothing,
    a_replay_claims_only_what_no_live_projector_has_claimed, a_stale_epoch_is_fenced_and_changes_nothing,
    a_tail_is_in_the_counts_and_ends_where_the_checkpoint_reaches_it,
    an_error_is_over_when_the_checkpoint_moves, batches_that_are_committed_at_once_fail_each_for_itself,
    errors_are_noted_for_their_owner_only, every_claim_has_a_higher_epoch,
    no_commit_of_an_older_epoch_comes_after_a_claim, the_guard_is_the_one_that_is_checked_in_every_order,
};
use profiles::{
    a_deleted_trait_stays_deleted_until_it_is_written_anew, a_late_send_settles_where_it_belongs,
    a_listener_that_is_cut_off_looks_at_everything_again, a_repeated_send_touches_no_row,
    a_send_that_names_a_version_is_decided_anew_when_an_older_one_arrives,
    changes_of_profiles_are_told_once_they_are_committed,
    lists_of_people_sessions_and_events_are_read_in_pages,
    writers_of_one_person_neither_block_each_other_nor_lose_anything,
};
use properties::{
    a_property_of_a_session_is_its_newest_value,
    a_property_that_umami_writes_at_the_same_time_is_no_conflict,
    a_property_that_umami_wrote_is_updated_in_place, an_imported_property_replaces_an_older_one_only,
    doubled_properties_of_a_session_are_updated_alike,
};
use rows::{
    equal_stores_compare_equal_and_others_are_told_apart, every_column_is_written_as_it_is,
    heatmaps_are_written_in_the_columns_that_there_are, many_rows_go_through_as_one,
    rows_that_a_constraint_refuses_are_told_as_such, rows_that_do_not_fit_are_refused_and_nothing_is_written,
};
use sessions::{a_session_keeps_what_it_has_and_gets_what_it_lacks, identifies_link_sessions_and_name_them};
use sources::websites_come_and_go;

/// Runs each function of the suite against a fresh fixture of the given kind.
macro_rules! store_contract {
    ($fixture:path: $($promise:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($fixture().await).await;
            }
        )+
    };
}

/// Calls `store_contract!` with every function that all backends share.
macro_rules! whole_contract {
    ($fixture:path) => {
        store_contract!($fixture:
            migrating_again_and_at_once_changes_nothing,
            every_claim_has_a_higher_epoch,
            a_stale_epoch_is_fenced_and_changes_nothing,
            no_commit_of_an_older_epoch_comes_after_a_claim,
            the_guard_is_the_one_that_is_checked_in_every_order,
            a_tail_is_in_the_counts_and_ends_where_the_checkpoint_reaches_it,
            a_misplaced_batch_is_refused_and_told_where_to_go_on,
            a_repeated_commit_changes_nothing,
            a_dropped_commit_is_whole_or_not_at_all,
            batches_that_are_committed_at_once_fail_each_for_itself,
            every_column_is_written_as_it_is,
            many_rows_go_through_as_one,
            a_session_keeps_what_it_has_and_gets_what_it_lacks,
            a_property_of_a_session_is_its_newest_value,
            a_property_that_umami_wrote_is_updated_in_place,
            an_imported_property_replaces_an_older_one_only,
            heatmaps_are_written_in_the_columns_that_there_are,
            applied_events_are_named_and_nothing_is_written,
            an_event_and_an_identify_with_one_id_are_one_event,
            of_two_partitions_with_one_event_one_applies_it,
            dead_letters_are_kept_with_their_place_and_reason,
            letters_are_listed_by_filters_and_in_pages,
            a_letter_that_is_tried_again_has_one_outcome_more_and_one_dead_fewer,
            letters_that_are_not_as_they_were_read_are_not_written,
            letters_wait_behind_the_first_of_their_session,
            late_records_give_the_rows_that_they_would_have_given_in_time,
            a_growth_is_committed_once_all_processes_have_acknowledged_it,
            a_partition_notes_the_last_barrier_that_it_has_passed,
            outcomes_add_up,
            what_is_missing_is_noted_with_the_checkpoint_that_passes_it,
            a_checkpoint_goes_back_and_dead_letters_of_the_other_records_stay,
            ranges_of_what_is_missing_are_bounded_and_their_counts_are_not,
            what_a_store_holds_is_told,
            notes_of_spools_are_replaced_and_go_when_they_hold_nothing,
            errors_are_noted_for_their_owner_only,
            an_error_is_over_when_the_checkpoint_moves,
            a_replay_claims_only_what_no_live_projector_has_claimed,
            websites_come_and_go,
            a_generation_is_made_filled_and_finished_beside_the_live_one,
            a_swap_fences_every_writer_once_and_can_be_reverted,
            a_generation_that_is_behind_is_not_swapped,
            foreign_rows_are_refused_kept_or_lost_as_it_is_said,
            a_swap_that_stops_at_any_step_is_done_wholly_later_or_was_done,
            equal_stores_compare_equal_and_others_are_told_apart,
            writers_of_one_person_neither_block_each_other_nor_lose_anything,
            a_repeated_send_touches_no_row,
            a_late_send_settles_where_it_belongs,
            a_deleted_trait_stays_deleted_until_it_is_written_anew,
            a_send_that_names_a_version_is_decided_anew_when_an_older_one_arrives,
            changes_of_profiles_are_told_once_they_are_committed,
            lists_of_people_sessions_and_events_are_read_in_pages,
        );
    };
}

mod sqlite {
    whole_contract!(super::StoreFixture::sqlite);
    store_contract!(super::StoreFixture::sqlite:
        rows_that_a_constraint_refuses_are_told_as_such,
        a_batch_for_a_locked_file_is_not_written_within_a_bounded_time,
    );
}

mod postgres {
    whole_contract!(super::StoreFixture::postgres);
    store_contract!(super::StoreFixture::postgres:
        rows_that_do_not_fit_are_refused_and_nothing_is_written,
        a_listener_that_is_cut_off_looks_at_everything_again,
    );
}

mod umamis_own_postgres {
    whole_contract!(super::StoreFixture::umami);
    store_contract!(super::StoreFixture::umami:
        nothing_but_the_schema_dashi_is_made,
        an_upgrade_is_noticed_with_the_next_claim,
        an_upgrade_is_noticed_when_the_catalogue_is_old,
        tables_that_changed_are_written_as_they_are_now,
        doubled_properties_of_a_session_are_updated_alike,
    );
}

mod umamis_3_3_postgres {
    whole_contract!(super::StoreFixture::umami_3_3);
    store_contract!(super::StoreFixture::umami_3_3:
        nothing_but_the_schema_dashi_is_made,
        identifies_link_sessions_and_name_them,
        a_property_that_umami_writes_at_the_same_time_is_no_conflict,
    );
}

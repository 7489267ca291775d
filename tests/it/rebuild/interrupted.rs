//! Rebuilds and swaps that are killed at any moment: the same command goes on, and the tables are equal at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use integration_tests::{Dashi, Deployment, Ledger, eventually};

use super::{Place, SOON, fill, on_both, replay, replay_json, states};

on_both!(
    a_rebuild_that_is_killed_at_every_step_goes_on_and_ends_equal,
    a_swap_that_is_killed_happens_wholly_or_not_at_all,
    an_interrupted_rebuild_is_shown_and_goes_on,
);

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Of Knuth's MMIX; the high bits are the better ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

async fn filled(place: &Place, events: u64) {
    let mut server = place.deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(&place.deployment);
    fill(&place.deployment, &mut ledger, &server, events).await;
    assert_eq!(server.dashi.terminate().await, Some(0));
}

/// Kills the process after this time; returns its exit code if it ended before.
async fn kill_after(mut dashi: Dashi, time: Duration) -> Option<i32> {
    tokio::time::sleep(time).await;
    if dashi.is_running() {
        dashi.kill9();
        return None;
    }
    dashi.wait_exit(SOON).await.code()
}

/// The state of the rebuild that an observer sees: the generation's state, and the records that it has applied.
async fn step(deployment: &Deployment) -> String {
    let status = deployment.run(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("status --json prints JSON");
    let generations = status["tables"]["generations"].as_array().expect("a list").iter();
    let newest = generations.last().expect("there is a live one");
    format!("{} {}", newest["state"], status["tables"]["building"]["done"])
}

async fn a_rebuild_that_is_killed_at_every_step_goes_on_and_ends_equal(place: &Place) {
    filled(place, 1_200).await;
    let deployment = &place.deployment;
    let (mut random, mut steps, mut kills) = (Random(13), BTreeSet::new(), 0);
    let rebuild = || deployment.spawn(&["replay", "run", "--rate", "600", "--json"]);
    // At moments by chance, before, in and after the replay, which takes two seconds: a start is a part of the time.
    let mut longest_ms = 400;
    while states(deployment).await.last().is_none_or(|(_, state)| state != "ready") && kills < 60 {
        match kill_after(rebuild(), Duration::from_millis(20 + random.below(longest_ms))).await {
            None => kills += 1,
            Some(code) => assert_eq!(code, 0, "it ended by itself"),
        }
        // A machine on which a start takes longer than this needs later moments.
        if !steps.insert(step(deployment).await) {
            longest_ms += longest_ms / 8;
        }
    }
    finish(deployment).await;
    assert!(kills > 3 && steps.len() > 3, "{kills} kills, after which it was at {steps:?}");

    // As soon as a step has begun, each.
    replay_json(deployment, &["drop", "2"], 0).await;
    for part in ["replaying", "building indexes"] {
        let mut dashi = rebuild();
        let begun = format!("\"part\":\"{part}\"");
        eventually(SOON, "the step has begun", async || {
            if dashi.stderr().contains(&begun) { Ok(()) } else { Err(dashi.stderr()) }
        })
        .await;
        dashi.kill9();
    }
    finish(deployment).await;
}

/// Lets the rebuild end, and compares.
async fn finish(deployment: &Deployment) {
    let built = replay_json(deployment, &["run"], 0).await;
    assert_eq!((&built["applied"], &built["complete"]), (&1_200.into(), &true.into()), "{built}");
    assert_eq!(states(deployment).await.len(), 2, "there is one generation beside the live one");
    let compared = replay_json(deployment, &["compare"], 0).await;
    assert_eq!(compared["equal"], true, "{compared}");
}

async fn a_swap_that_is_killed_happens_wholly_or_not_at_all(place: &Place) {
    filled(place, 600).await;
    let deployment = &place.deployment;
    replay_json(deployment, &["run"], 0).await;
    let (mut random, mut swaps, mut kills) = (Random(13), 0, 0);
    let mut live = 1;
    for _ in 0..12 {
        let other = if live == 1 { "2" } else { "1" };
        let dashi = deployment.spawn(&["replay", "swap", other]);
        if kill_after(dashi, Duration::from_millis(20 + random.below(250))).await.is_none() {
            kills += 1;
        }
        let now = states(deployment).await;
        let is_live: Vec<_> = now.iter().filter(|(_, state)| state == "live").collect();
        let [(number, _)] = is_live[..] else { panic!("{now:?}") };
        swaps += u32::from(*number != live);
        live = *number;
        let compared = replay(deployment, &["compare", if live == 1 { "2" } else { "1" }]).await;
        assert_eq!(compared.code, Some(0), "{}{}", compared.stdout, compared.stderr);
    }
    assert!(kills > 0, "none was killed, {swaps} swapped");
    // The tables take events, whichever generation is live now.
    let mut server = deployment.start("serve").ready().await;
    let mut ledger = Ledger::new(deployment);
    fill(deployment, &mut ledger, &server, 50).await;
    let totals = deployment.settled().await.totals;
    assert_eq!((totals.applied, totals.duplicate, totals.unaccounted), (650, 0, 0));
    assert_eq!(server.dashi.terminate().await, Some(0));
    let other = if live == 1 { "2" } else { "1" };
    replay_json(deployment, &["swap", other], 0).await;
}

async fn an_interrupted_rebuild_is_shown_and_goes_on(place: &Place) {
    filled(place, 800).await;
    let deployment = &place.deployment;
    let mut server = deployment.start("serve").ready().await;
    let mut rebuild = deployment.spawn(&["replay", "run", "--rate", "50", "--json"]);
    let metric = "dashi_projector_rebuild_left_records{generation=\"2\"}";
    eventually(SOON, "a running process shows the rebuild", async || {
        assert!(rebuild.is_running(), "{}", rebuild.logs());
        let text = integration_tests::http::get(&format!("{}/metrics", server.url())).await?.text();
        let left = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<u64>().ok());
        anyhow::Ok(left.is_some_and(|left| left > 0 && left < 800))
    })
    .await;
    rebuild.interrupt();
    let ended = rebuild.wait_exit(SOON).await;
    assert_eq!(ended.code(), Some(4), "{}", rebuild.logs());
    assert!(rebuild.stderr().contains("{\"progress\":"), "{}", rebuild.stderr());
    let stopped: serde_json::Value = serde_json::from_str(&rebuild.stdout()).unwrap();
    assert_eq!(stopped["complete"], false, "{stopped}");

    let shown = deployment.run(&["status"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("generation 1 is live"), "{}", shown.stdout);
    assert!(shown.stdout.contains("generation 2 is being built: "), "{}", shown.stdout);
    assert!(shown.stdout.contains(" of 800 records ("), "{}", shown.stdout);

    // Other rules are refused, these go on, and what is there is not read again.
    let other = deployment.clone().with("DASHI_TIMEZONE", "Europe/Berlin");
    let refused = replay(&other, &["run"]).await;
    assert_eq!(refused.code, Some(2), "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("dashi replay drop 2"), "it says what to do: {}", refused.stderr);
    let built = replay_json(deployment, &["run"], 0).await;
    assert_eq!(built["applied"], 800, "{built}");
    assert!(built["records"].as_u64().unwrap() < 800, "it went on: {built}");

    // Both generations have their rules on record.
    for _ in 0..2 {
        let shown = other.run(&["status"]).await;
        assert!(shown.stdout.contains("a rebuild is due: "), "{}", shown.stdout);
        assert!(shown.stdout.contains("timezone=Europe/Berlin"), "{}", shown.stdout);
        let shown = deployment.run(&["status"]).await;
        assert!(!shown.stdout.contains("a rebuild is due: "), "{}", shown.stdout);
        let live = states(deployment).await.into_iter().find(|(_, state)| state == "live");
        let other = if live.is_some_and(|(number, _)| number == 1) { "2" } else { "1" };
        replay_json(deployment, &["swap", other], 0).await;
    }
    assert_eq!(server.dashi.terminate().await, Some(0));
}

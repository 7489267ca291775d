//! The priorities of threads: what projects stands back behind what answers requests, where one process does both.

use std::collections::BTreeMap;
use std::fs;

use integration_tests::{Ledger, Server};

use super::{on_files, send_events};

/// The nice value in a file `stat` of `/proc`: the 19th field. The second one is the name, in parentheses.
fn nice_value(stat: &str) -> i32 {
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    fields.split(' ').nth(16).expect("a nice value").parse().expect("a number")
}

/// The nice values of the threads of a process, by the threads' names.
fn nice_values(server: &Server) -> BTreeMap<String, Vec<i32>> {
    let mut values: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", server.dashi.pid())).expect("the process runs") {
        let task = task.expect("a thread").path();
        let (Ok(name), Ok(stat)) =
            (fs::read_to_string(task.join("comm")), fs::read_to_string(task.join("stat")))
        else {
            continue;
        };
        values.entry(name.trim_end().to_owned()).or_default().push(nice_value(&stat));
    }
    values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_project_stand_back_in_serve_alone() {
    let (_directory, deployment) = on_files("priority").await;
    // That of the tests themselves, which processes inherit.
    let usual = nice_value(&fs::read_to_string("/proc/self/stat").expect("this process runs"));
    for (role, nice, projects) in [("serve", "19", 19), ("serve", "0", usual), ("project", "19", usual)] {
        let deployment = deployment.clone().with("DASHI_PROJECTOR_NICE", nice);
        let mut server = deployment.start(role).ready().await;
        if role == "serve" {
            send_events(&mut Ledger::new(&deployment), &server, 10).await;
            deployment.settled().await;
        }
        let values = nice_values(&server);
        let of = |name: &str| -> Vec<i32> {
            let of_name = values.iter().filter(|(of, _)| of.starts_with(name));
            of_name.flat_map(|(_, values)| values).copied().collect()
        };
        let are = |name: &str, nice: i32| of(name).iter().all(|value| *value == nice);
        assert!(!of("fold").is_empty() && are("fold", projects), "{role} {nice}: {values:?}");
        let standing_back = of("sqlx-sqlite").iter().filter(|nice| **nice == 19).count();
        assert_eq!(
            standing_back,
            usize::from(projects == 19),
            "the one that writes: {role} {nice}: {values:?}"
        );
        for answers in ["tokio", "event-log", "dashi"] {
            assert!(are(answers, usual), "{role} {nice}: {values:?}");
        }
        assert_eq!(server.dashi.terminate().await, Some(0), "{}", server.dashi.logs());
    }
}

use super::*;
use crate::control::state::{Draft, Mount};
use crate::control::workspace::testing;
use proptest::prelude::*;

/// Moments that a clock may jump to, and at which leases end.
const MOMENTS: [i64; 8] = [i64::MIN, -1, 0, 1, 50_000, 90_000, 1 << 60, i64::MAX];

#[derive(Clone, Debug)]
enum Step {
    PutNode { number: u64, lease_ms: i64, revived_ms: i64 },
    DeleteNode(u64),
    Mount { project: u64, node: u64 },
    Unmount { project: u64, node: u64 },
    DeleteProject(u64),
    Nothing,
}

fn step() -> impl Strategy<Value = (Step, i64)> {
    let moment = || prop::sample::select(MOMENTS.to_vec());
    let step = prop_oneof![
        4 => (1..4u64, moment(), moment()).prop_map(|(number, lease_ms, revived_ms)| {
            Step::PutNode { number, lease_ms, revived_ms }
        }),
        1 => (1..4u64).prop_map(Step::DeleteNode),
        4 => (1..4u64, 1..4u64).prop_map(|(project, node)| Step::Mount { project, node }),
        1 => (1..4u64, 1..4u64).prop_map(|(project, node)| Step::Unmount { project, node }),
        1 => (1..4u64).prop_map(Step::DeleteProject),
        4 => Just(Step::Nothing),
    ];
    (step, moment())
}

fn changes(state: &State, step: &Step) -> Vec<Change> {
    let draft = |number: &u64| match state.projects.get(number) {
        Some(project) => Draft::of(project),
        None => Draft::new(testing::profile(*number)),
    };
    let edited = |project: &u64, edit: &dyn Fn(&mut Draft)| {
        let mut draft = draft(project);
        edit(&mut draft);
        draft.finish(0).1
    };
    match step {
        Step::PutNode { number, lease_ms, revived_ms } => {
            let node = testing::node(*number, *lease_ms);
            vec![Change::PutNode(Arc::new(Node { revived_at_ms: *revived_ms, ..node }))]
        }
        Step::DeleteNode(number) => vec![Change::DeleteNode(*number)],
        Step::Mount { project, node } => edited(project, &|draft| {
            draft.add_mount(Mount {
                mount_path: format!("/m{}", node % 2),
                node_id: node_id(*node),
                export_name: "work".into(),
            });
        }),
        Step::Unmount { project, node } => {
            edited(project, &|draft| draft.remove_mounts(|m| m.node() == Some(*node)))
        }
        Step::DeleteProject(number) => {
            state.projects.get(number).cloned().map(Change::DeleteProject).into_iter().collect()
        }
        Step::Nothing => Vec::new(),
    }
}

/// All that a look finds out, but for what it remembers of earlier ones.
fn seen(record: &Record) -> impl PartialEq + std::fmt::Debug {
    let projects = record.projects.values().map(|known| {
        let Known { project, chosen, mounts, availability, digest, drift_count, failed, .. } =
            &**known;
        let known = (chosen.clone(), *mounts, *availability, *digest, *drift_count);
        (project.number, known, failed.clone())
    });
    let projects: Vec<_> = projects.collect();
    (projects, record.nodes.clone(), record.standing, record.turns.in_order.clone())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// The clock, too, jumps to anywhere at each step, and nothing but presence follows it.
    #[test]
    fn a_look_at_what_was_touched_finds_what_a_look_at_everything_finds(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let (mut state, mut record) = (State::default(), Record::default());
        for (step, now_ms) in steps {
            let (changes, mut touched) = (changes(&state, &step), Touched::default());
            changes.iter().for_each(|change| state.apply(change));
            touched.hear(&changes);
            record.look(&state, touched, now_ms);
            let mut anew = Record::default();
            anew.look(&state, Touched::default(), now_ms);
            prop_assert_eq!(seen(&record), seen(&anew), "{:?} at {}", step, now_ms);
            let rows = state_rows(&state);
            prop_assert_eq!(&State::load(rows).unwrap(), &state);
        }
    }
}

/// The state as its rows.
fn state_rows(state: &State) -> BTreeMap<String, Vec<u8>> {
    let nodes = state.nodes.values().map(|node| Change::PutNode(node.clone()));
    let projects = state.projects.values().flat_map(|project| {
        let mut draft = Draft::new((*project.profile).clone());
        for (number, mount) in project.mounts.numbered() {
            draft.set_mount(number, Some((**mount).clone()));
        }
        draft.finish(0).1
    });
    let rows = nodes.chain(projects).flat_map(|change| change.rows());
    rows.filter_map(|(key, value)| Some((key, value?))).collect()
}

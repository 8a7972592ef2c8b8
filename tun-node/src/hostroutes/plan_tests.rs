//! The plan against a kernel of a few lines, with a neighbour who does as he likes.

use super::*;
use crate::netlink::Route;

const TUN: u32 = 7;
const FOREIGN: u8 = 3;

/// The kernel's IPv4 table: one route for a prefix and a metric.
#[derive(Debug, Default)]
struct Kernel {
    table: BTreeMap<(IpNet, Option<u32>), ListedRoute>,
}

impl Kernel {
    fn act(&mut self, action: &Action) -> Result<(), Refused> {
        let route = action.subject();
        let key = (route.route.prefix, route.route.metric);
        match action {
            Action::Add(_) if self.table.contains_key(&key) => return Err(Refused::Exists),
            Action::Add(_) | Action::Replace(_) => {
                let before = self.table.insert(key, route.clone());
                // The one rule that may never be broken.
                assert!(before.is_none_or(|before| before.route.protocol == PROTOCOL));
            }
            Action::Delete(_) => {
                assert_eq!(route.route.protocol, PROTOCOL);
                if self.table.get(&key) != Some(route) {
                    return Err(Refused::NotFound);
                }
                self.table.remove(&key);
            }
        }
        Ok(())
    }

    fn list(&self) -> Vec<ListedRoute> {
        self.table.values().cloned().collect()
    }

    fn ours(&self) -> Vec<ListedRoute> {
        let mut all = self.list();
        all.retain(|listed| listed.route.protocol == PROTOCOL);
        all
    }
}

fn listed(number: u8, mtu: Option<u32>, protocol: u8) -> ListedRoute {
    let prefix = format!("10.0.{number}.0/24").parse().expect("a prefix");
    ListedRoute {
        route: Route {
            mtu,
            protocol,
            ..Route::new(prefix)
        },
        device: if protocol == PROTOCOL { TUN } else { 2 },
    }
}

fn ours(number: u8) -> ListedRoute {
    listed(number, None, PROTOCOL)
}

fn settle(plan: &mut Plan, kernel: &mut Kernel) {
    for _ in 0..100 {
        if plan.is_listing_wanted() {
            plan.handle_listed(kernel.list(), |listed| listed.device == TUN);
        }
        let actions = plan.poll(3);
        if actions.is_empty() && !plan.is_listing_wanted() {
            return;
        }
        for action in actions {
            if let Err(why) = kernel.act(&action) {
                plan.handle_refused(&action, why);
            }
        }
    }
    panic!("it goes round: {plan:?}");
}

#[test]
fn adds_what_is_missing_changes_what_is_different_and_deletes_what_is_stale() {
    let mut kernel = Kernel::default();
    for route in [
        ours(1),
        listed(2, Some(1400), PROTOCOL),
        ours(3),
        listed(9, None, FOREIGN),
    ] {
        kernel.act(&Action::Add(route)).expect("it is empty");
    }
    let mut plan = Plan::default();
    plan.set_desired([ours(1), ours(2), ours(4)]);
    plan.handle_listed(kernel.list(), |listed| listed.device == TUN);
    let mut actions = plan.poll(100);
    actions.sort_by_key(|action| action.subject().route.prefix);
    assert_eq!(
        actions,
        [
            Action::Replace(ours(2)),
            Action::Delete(ours(3)),
            Action::Add(ours(4))
        ]
    );
    assert!(plan.poll(100).is_empty());
}

#[test]
fn puts_back_what_somebody_deleted_and_waits_where_somebody_sits() {
    let mut kernel = Kernel::default();
    let mut plan = Plan::default();
    plan.set_desired([ours(1), ours(2)]);
    settle(&mut plan, &mut kernel);
    assert_eq!(kernel.ours().len(), 2);
    // Deleted.
    kernel.act(&Action::Delete(ours(1))).expect("it is there");
    plan.handle_event(RouteEvent::Removed(ours(1)));
    settle(&mut plan, &mut kernel);
    assert_eq!(kernel.ours().len(), 2);
    // Replaced by somebody's own.
    let his = listed(1, None, FOREIGN);
    kernel.table.insert((his.route.prefix, None), his.clone());
    plan.handle_event(RouteEvent::Replaced(his.clone()));
    settle(&mut plan, &mut kernel);
    assert_eq!(plan.taken().count(), 1);
    assert_eq!(kernel.ours(), [ours(2)]);
    // He leaves.
    kernel.table.remove(&(his.route.prefix, None));
    plan.handle_event(RouteEvent::Removed(his));
    settle(&mut plan, &mut kernel);
    assert_eq!(plan.taken().count(), 0);
    assert_eq!(kernel.ours().len(), 2);
}

#[test]
fn what_the_kernel_refuses_for_a_while_is_tried_again_when_told() {
    let mut plan = Plan::default();
    plan.set_desired([ours(1)]);
    let [action] = &plan.poll(9)[..] else {
        panic!("one");
    };
    plan.handle_refused(action, Refused::Otherwise);
    assert!(plan.poll(9).is_empty() && plan.has_failed());
    plan.retry();
    assert_eq!(plan.poll(9), [Action::Add(ours(1))]);
    assert_eq!(plan.ours().count(), 1);
}

#[test]
fn a_route_of_our_number_on_another_device_is_another_nodes() {
    let mut kernel = Kernel::default();
    let other = ListedRoute {
        device: 99,
        ..ours(1)
    };
    kernel.act(&Action::Add(other.clone())).expect("empty");
    let mut plan = Plan::default();
    plan.set_desired([ours(1), ours(2)]);
    plan.want_listing();
    settle(&mut plan, &mut kernel);
    assert_eq!(kernel.ours(), [other, ours(2)]);
    assert_eq!(plan.taken().count(), 1);
}

#[test]
fn an_ipv6_route_is_known_again_by_the_metric_that_the_kernel_gave_it() {
    let mut plan = Plan::default();
    let wanted = ListedRoute {
        route: Route::new("fd00::/64".parse().expect("a prefix")),
        device: TUN,
    };
    let mut found = wanted.clone();
    found.route.metric = Some(1024);
    plan.set_desired([wanted]);
    plan.handle_listed([found], |_| true);
    assert!(plan.poll(9).is_empty());
}

/// Any row of wishes, deletions, foreign routes and lost events ends with the table that a reader
/// of the wishes and of the foreign routes would write down.
#[test]
fn ends_at_the_same_table_as_writing_it_down_does() {
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for round in 0..2000 {
        let (mut kernel, mut plan) = (Kernel::default(), Plan::default());
        // The slow twin: what is wished for and what the neighbour did, each by itself.
        let mut wishes: BTreeMap<IpNet, ListedRoute> = BTreeMap::new();
        let mut foreign: BTreeMap<IpNet, ListedRoute> = BTreeMap::new();
        for _ in 0..30 {
            let number = u8::try_from(random(6)).expect("small");
            let prefix = ours(number).route.prefix;
            let mut event = None;
            match random(6) {
                0 => {
                    let mtu = (random(2) == 0).then_some(1400);
                    wishes.insert(prefix, listed(number, mtu, PROTOCOL));
                    plan.set_desired(wishes.values().cloned());
                }
                1 => {
                    wishes.remove(&prefix);
                    plan.set_desired(wishes.values().cloned());
                }
                // Somebody deletes whatever is there.
                2 => {
                    event = kernel
                        .table
                        .remove(&(prefix, None))
                        .map(RouteEvent::Removed);
                    foreign.remove(&prefix);
                }
                // Somebody puts his own there.
                3 => {
                    let his = listed(number, None, FOREIGN);
                    let before = kernel.table.insert((prefix, None), his.clone());
                    event = Some(match before {
                        Some(_) => RouteEvent::Replaced(his.clone()),
                        None => RouteEvent::Added(his.clone()),
                    });
                    foreign.insert(prefix, his);
                }
                4 => settle(&mut plan, &mut kernel),
                _ => {
                    let his = listed(number, None, FOREIGN);
                    if foreign.remove(&prefix).is_some() {
                        kernel.table.remove(&(prefix, None));
                        event = Some(RouteEvent::Removed(his));
                    }
                }
            }
            let Some(event) = event else { continue };
            if random(10) == 0 {
                // The kernel had no room for it, and says so before the next change is asked for.
                plan.want_listing();
            } else {
                plan.handle_event(event);
            }
        }
        settle(&mut plan, &mut kernel);
        let mut expected = wishes.clone();
        expected.extend(foreign.clone());
        let table: Vec<_> = kernel.list();
        assert_eq!(table, expected.into_values().collect::<Vec<_>>(), "{round}");
        let both = foreign.keys().filter(|prefix| wishes.contains_key(prefix));
        assert_eq!(
            plan.taken().map(|(prefix, _)| prefix).collect::<Vec<_>>(),
            both.copied().collect::<Vec<_>>()
        );
    }
}

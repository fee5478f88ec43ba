"""Who may start a trial on a shared cluster: the ledger's rule, without Ray and without a clock."""

from __future__ import annotations

import inspect

from hypothesis import given, settings
from hypothesis import strategies as st

from study.driver.admission import (
    ADMISSION,
    INTERFACE,
    RESERVE_SECONDS,
    SILENCE_SECONDS,
    WANT_SECONDS,
    Admission,
    Ledger,
    Slot,
    fits,
)
from study.driver.messages import waiting_line

TOLD = (
    "(self, driver: 'str', {}: 'str', need: 'Resources', total: 'Resources', priority: 'int' = 0, "
    "workers: 'int' = 1) -> 'bool'"
)
INTERFACES = {  # of every release: its actors may still be on a cluster
    1: {
        "ask": TOLD.format("trial"), "keep": TOLD.format("name"), "others_wait": "(self, driver: 'str') -> 'bool'",
        "heartbeat": "(self, driver: 'str', slots: 'Mapping[str, Resources]', workers: 'int' = 1) -> 'None'",
        "give_back": "(self, driver: 'str', trial: 'str') -> 'None'", "leave": "(self, driver: 'str') -> 'None'",
    },
}  # fmt: skip
TWO = [{"CPU": 2.0}]
ONE, BOTH = Slot({"CPU": 1.0}), Slot({"CPU": 2.0})


def test_slots_are_given_while_the_cluster_holds_them():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", ONE, TWO, 0)
    assert ledger.ask("a", "a/1", ONE, TWO, 0)
    assert not ledger.ask("a", "a/2", ONE, TWO, 0)
    ledger.give_back("a", "a/0")
    assert ledger.ask("a", "a/2", ONE, TWO, 1)


def test_asking_again_for_a_held_slot_is_a_yes_and_costs_nothing():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", BOTH, TWO, 0)
    assert ledger.ask("a", "a/0", BOTH, TWO, 1)


def test_what_others_hold_without_a_slot_is_waited_for_and_keeps_its_place_in_line():
    ledger = Ledger()
    assert not ledger.ask("a", "a/0", ONE, TWO, 0, is_free=lambda need: False)
    assert not ledger.ask("a", "a/0", BOTH, TWO, 1, is_free=lambda need: need["CPU"] < 2)
    assert not ledger.ask("b", "b/0", BOTH, TWO, 2), "a came first"
    assert ledger.ask("a", "a/0", ONE, TWO, 2, is_free=lambda need: need["CPU"] < 2)


def test_a_study_that_holds_less_goes_first():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", ONE, TWO, 0)
    assert ledger.ask("a", "a/1", ONE, TWO, 0)
    assert not ledger.ask("b", "b/0", ONE, TWO, 1)  # full; b is waiting now
    ledger.give_back("a", "a/0")
    assert not ledger.ask("a", "a/2", ONE, TWO, 2)  # b has nothing, a still has one
    assert ledger.ask("b", "b/0", ONE, TWO, 2)


def test_a_trial_of_four_devices_weighs_more_than_three_trials_of_one():
    nodes = [{"GPU": 8.0}]
    ledger = Ledger()
    assert ledger.ask("big", "big/0", Slot({"GPU": 4.0}), nodes, 0)
    for number in range(4):
        assert ledger.ask("small", f"small/{number}", Slot({"GPU": 1.0}), nodes, 0)
    assert not ledger.ask("big", "big/1", Slot({"GPU": 1.0}), nodes, 1)
    assert not ledger.ask("small", "small/4", Slot({"GPU": 1.0}), nodes, 2)
    ledger.give_back("small", "small/0")
    assert not ledger.ask("big", "big/1", Slot({"GPU": 1.0}), nodes, 3)
    assert ledger.ask("small", "small/4", Slot({"GPU": 1.0}), nodes, 3)


def test_a_higher_priority_goes_first_though_it_holds_more_and_came_later():
    ledger = Ledger()
    assert ledger.ask("urgent", "urgent/0", ONE, TWO, 0, priority=1)
    assert ledger.ask("urgent", "urgent/1", ONE, TWO, 0, priority=1)
    assert not ledger.ask("b", "b/0", ONE, TWO, 1)
    assert not ledger.ask("urgent", "urgent/2", ONE, TWO, 2, priority=1)
    ledger.give_back("urgent", "urgent/0")
    assert not ledger.ask("b", "b/0", ONE, TWO, 3)
    assert ledger.ask("urgent", "urgent/2", ONE, TWO, 3, priority=1)


def test_a_lower_priority_does_not_pass_a_large_trial_that_waits():
    ledger = Ledger()
    assert ledger.ask("b", "b/0", ONE, TWO, 0)
    assert not ledger.ask("urgent", "urgent/0", BOTH, TWO, 1, priority=1)
    assert not ledger.ask("b", "b/1", ONE, TWO, 2)
    ledger.give_back("b", "b/0")
    assert ledger.ask("urgent", "urgent/0", BOTH, TWO, 3, priority=1)


def keep_asking(ledger: Ledger, start: float, seconds: float, *asks: tuple[str, str, Slot]) -> dict[str, list[float]]:
    """Ask every 2 s, in this order; when each got a yes."""
    granted: dict[str, list[float]] = {driver: [] for driver, _, _ in asks}
    clock = start
    while clock <= start + seconds:
        for driver, trial, slot in asks:
            if ledger.ask(driver, trial, slot, TWO, clock):
                granted[driver].append(clock)
        clock += 2
    return granted


def test_small_trials_pass_a_large_one_for_a_minute_and_then_it_gets_room():
    ledger = Ledger()
    ledger.ask("s", "s/0", ONE, TWO, 0)
    assert not ledger.ask("large", "large/0", BOTH, TWO, 0)
    assert ledger.ask("t", "t/0", ONE, TWO, 1)
    ledger.give_back("t", "t/0")
    waiting = keep_asking(ledger, 2, RESERVE_SECONDS, ("large", "large/0", BOTH), ("s", "s/0", ONE))
    assert not waiting["large"]
    clock = 2 + RESERVE_SECONDS + 2
    assert not ledger.ask("large", "large/0", BOTH, TWO, clock)
    assert not ledger.ask("t", "t/1", ONE, TWO, clock), "what is free is kept for the large trial now"
    ledger.give_back("s", "s/0")
    assert not ledger.ask("t", "t/1", ONE, TWO, clock)
    assert ledger.ask("large", "large/0", BOTH, TWO, clock)


def test_room_is_kept_only_of_what_the_large_trial_lacks():
    nodes = [{"CPU": 16.0, "GPU": 2.0}]
    ledger = Ledger()
    assert ledger.ask("s", "s/0", Slot({"CPU": 1.0, "GPU": 1.0}), nodes, 0)
    for clock in range(0, 70, 5):
        assert not ledger.ask("large", "large/0", Slot({"CPU": 8.0, "GPU": 2.0}), nodes, clock)
        ledger.heartbeat("s", clock)
    assert not ledger.ask("t", "t/0", Slot({"CPU": 1.0, "GPU": 1.0}), nodes, 70)
    assert not ledger.ask("t", "t/0", Slot({"CPU": 8.0}), nodes, 70), "it would leave fewer than 8 CPUs"
    assert ledger.ask("t", "t/0", Slot({"CPU": 7.0}), nodes, 70)


def test_a_trial_that_cannot_fit_even_alone_holds_nobody_up():
    ledger = Ledger()
    for clock in range(0, 200, 5):
        assert not ledger.ask("huge", "huge/0", Slot({"CPU": 3.0}), TWO, clock, priority=9)
    assert ledger.ask("a", "a/0", ONE, TWO, 200)


def test_a_node_that_joins_gives_room_and_one_that_leaves_takes_it():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", BOTH, TWO, 0)
    assert not ledger.ask("a", "a/1", BOTH, TWO, 0)
    assert ledger.ask("a", "a/1", BOTH, TWO * 2, 1)
    ledger.give_back("a", "a/0")
    assert not ledger.ask("a", "a/2", BOTH, TWO, 2), "one of two nodes is gone, the other is full"


def test_workers_need_room_on_single_nodes():
    pieces = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert fits(pieces, [Slot({"CPU": 4.0}, workers=2)])
    assert not fits(pieces, [Slot({"CPU": 4.0}, workers=1)])
    assert fits(pieces, [Slot({"CPU": 4.0}, workers=2), ONE, ONE])
    assert not fits(pieces, [Slot({"CPU": 4.0}, workers=2), BOTH])


def test_a_large_trial_gets_room_also_when_what_is_free_lies_in_pieces():
    pieces = [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 3.0}]
    ledger = Ledger()
    for number in range(3):
        assert ledger.ask("s", f"s/{number}", BOTH, pieces, 0)
    for clock in range(0, 70, 5):
        assert not ledger.ask("large", "large/0", BOTH, pieces, clock)  # 3 CPUs are free, one on each node
        ledger.heartbeat("s", clock)
    assert not ledger.ask("t", "t/0", Slot({"CPU": 0.5}), pieces, 70)


def test_a_waiting_study_that_went_silent_blocks_nobody():
    ledger = Ledger()
    ledger.ask("a", "a/0", ONE, TWO, 0)
    ledger.ask("a", "a/1", ONE, TWO, 0)
    assert not ledger.ask("b", "b/0", ONE, TWO, 1)
    ledger.give_back("a", "a/0")
    assert not ledger.ask("a", "a/2", ONE, TWO, WANT_SECONDS)
    assert ledger.ask("a", "a/2", ONE, TWO, 1 + WANT_SECONDS)


def test_a_silent_driver_loses_its_slots():
    ledger = Ledger()
    ledger.ask("a", "a/0", BOTH, TWO, 0)
    assert not ledger.ask("b", "b/0", ONE, TWO, SILENCE_SECONDS - 1)
    assert ledger.ask("b", "b/0", ONE, TWO, SILENCE_SECONDS + 1)


def test_a_driver_that_leaves_gives_everything_back():
    ledger = Ledger()
    ledger.ask("a", "a/0", BOTH, TWO, 0)
    ledger.leave("a")
    assert ledger.ask("b", "b/0", BOTH, TWO, 0)


def test_a_restarted_ledger_grants_nothing_before_the_drivers_have_told_it_what_they_hold():
    ledger = Ledger(opens=15)
    assert not ledger.ask("b", "b/0", ONE, TWO, 10)
    ledger.heartbeat("a", 12, {"a/0": BOTH})
    assert not ledger.ask("b", "b/0", ONE, TWO, 16)
    assert ledger.ask("a", "a/0", BOTH, TWO, 16)
    ledger.give_back("a", "a/0")
    assert ledger.ask("b", "b/0", ONE, TWO, 17)


SIZES = st.sampled_from(
    [Slot({"CPU": 1.0}), Slot({"CPU": 3.0}), Slot({"CPU": 4.0}, workers=2), Slot({"CPU": 2.0, "GPU": 1.0})]
)
NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]


@settings(max_examples=150, deadline=None)
@given(
    drivers=st.lists(st.tuples(SIZES, st.integers(0, 2)), min_size=1, max_size=5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 20)), max_size=80),
)
def test_whatever_happens_the_nodes_hold_what_was_granted_and_no_lower_priority_goes_first(drivers, steps):
    ledger, clock, count = Ledger(), 0.0, 0
    for which, gives_back, seconds in steps:
        clock += seconds
        name = f"d{which % len(drivers)}"
        slot, priority = drivers[which % len(drivers)]
        for other in range(len(drivers)):
            if f"d{other}" in ledger.tenants:
                ledger.heartbeat(f"d{other}", clock)
        tenant = ledger.tenants.get(name)
        if gives_back and tenant and tenant.slots:
            ledger.give_back(name, next(iter(tenant.slots)))
            continue
        count += 1
        before = {
            other: each.want
            for other, each in ledger.tenants.items()
            if other != name and each.want and clock - each.want.asked < WANT_SECONDS
        }
        held = [each for tenant in ledger.tenants.values() for each in tenant.slots.values()]
        if ledger.ask(name, f"{name}/{count}", slot, NODES, clock, priority):
            assert fits(NODES, [*held, slot])
            for want in before.values():
                if want.priority > priority and fits(NODES, [*held, want.slot]):
                    assert fits(NODES, [*held, want.slot, slot]), "a higher priority could have started instead"


@settings(max_examples=60, deadline=None)
@given(
    drivers=st.lists(SIZES, min_size=2, max_size=5),
    lengths=st.lists(st.integers(1, 8), min_size=5, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_every_study_of_one_priority_starts_a_trial_in_every_while_however_large_the_others(drivers, lengths, order):
    """Every driver asks every 5 s for as many trials as it can get; each trial takes a few rounds."""
    ledger, running, last = Ledger(), {}, dict.fromkeys(range(len(drivers)), 0)
    longest = 0
    for turn in range(150):
        clock = turn * 5.0
        for key, (owner, until) in list(running.items()):
            if until <= turn:
                ledger.give_back(f"d{owner}", key)
                del running[key]
        everybody = list(range(len(drivers)))
        order.shuffle(everybody)
        for owner in everybody:
            ledger.heartbeat(f"d{owner}", clock)
            while ledger.ask(f"d{owner}", key := f"d{owner}/{turn}.{len(running)}", drivers[owner], NODES, clock):
                running[key] = owner, turn + lengths[owner]
                last[owner] = turn
            longest = max(longest, turn - last[owner])
    assert longest <= (RESERVE_SECONDS / 5 + 2 * max(lengths)) * len(drivers)


@settings(max_examples=60, deadline=None)
@given(slot=SIZES)
def test_an_idle_cluster_never_refuses_what_fits_it(slot):
    assert Ledger().ask("a", "a/0", slot, NODES, 0.0)


def test_a_wait_for_the_cluster_says_what_is_missing():
    need, total = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}
    assert waiting_line(7, need, total, {"CPU": 3.0}) == (
        "trial   7  waits for room on the cluster: it needs 4 CPU (3 of 16 are free), 1 GPU (0 of 2 are free)"
    )


def test_a_slot_is_kept_for_the_next_trial_while_nobody_goes_first():
    ledger = Ledger()
    assert ledger.ask("a", "a/1", ONE, TWO, 0)
    assert ledger.ask("a", "a/2", ONE, TWO, 0)
    assert ledger.keep("a", "a/1", ONE, TWO, 1)
    assert not ledger.others_wait("a", 1)
    assert not ledger.ask("b", "b/1", ONE, TWO, 2)
    assert ledger.others_wait("a", 2)
    assert not ledger.others_wait("b", 2)
    assert not ledger.keep("a", "a/1", ONE, TWO, 3), "b has nothing"
    assert not ledger.ask("b", "b/1", ONE, TWO, 3), "it is not free before it is given back"
    ledger.give_back("a", "a/1")
    assert ledger.ask("b", "b/1", ONE, TWO, 4)
    assert ledger.keep("a", "a/2", ONE, TWO, 5), "each has one"


def test_a_lower_priority_does_not_make_one_give_its_slot_back():
    ledger = Ledger()
    assert ledger.ask("urgent", "urgent/1", BOTH, TWO, 0, priority=1)
    assert not ledger.ask("b", "b/1", ONE, TWO, 1)
    assert ledger.keep("urgent", "urgent/1", BOTH, TWO, 2, priority=1)


def test_a_ledger_that_still_learns_lets_one_keep_what_it_holds():
    ledger = Ledger(opens=15)
    assert ledger.keep("a", "a/1", BOTH, TWO, 1)
    assert not ledger.ask("b", "b/1", ONE, TWO, 16), "it has learned of it"


def test_an_actor_with_other_methods_has_another_name():
    public = {name: each for name, each in vars(Admission).items() if not name.startswith("_")}
    now = {name: str(inspect.signature(each)) for name, each in public.items()}
    assert now == INTERFACES[INTERFACE], "raise INTERFACE, and add what it is now to INTERFACES"
    assert ADMISSION.endswith(f"-{INTERFACE}")

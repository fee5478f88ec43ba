"""Who may start a trial on a shared cluster: the ledger's rule, without Ray and without a clock."""

from __future__ import annotations

from study.admission import SILENCE_SECONDS, Ledger

TOTAL = {"CPU": 2.0}
ONE = {"CPU": 1.0}


def test_slots_are_given_while_the_cluster_holds_them():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", ONE, TOTAL, 0)
    assert ledger.ask("a", "a/1", ONE, TOTAL, 0)
    assert not ledger.ask("a", "a/2", ONE, TOTAL, 0)
    ledger.give_back("a", "a/0")
    assert ledger.ask("a", "a/2", ONE, TOTAL, 1)


def test_asking_again_for_a_held_slot_is_a_yes_and_costs_nothing():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", {"CPU": 2.0}, TOTAL, 0)
    assert ledger.ask("a", "a/0", {"CPU": 2.0}, TOTAL, 1)


def test_a_study_that_holds_less_goes_first():
    ledger = Ledger()
    assert ledger.ask("a", "a/0", ONE, TOTAL, 0)
    assert ledger.ask("a", "a/1", ONE, TOTAL, 0)
    assert not ledger.ask("b", "b/0", ONE, TOTAL, 1)  # full; b is waiting now
    ledger.give_back("a", "a/0")
    assert not ledger.ask("a", "a/2", ONE, TOTAL, 2)  # b has nothing, a still has one
    assert ledger.ask("b", "b/0", ONE, TOTAL, 2)


def test_a_waiting_study_that_went_silent_blocks_nobody():
    ledger = Ledger()
    ledger.ask("a", "a/0", ONE, TOTAL, 0)
    ledger.ask("a", "a/1", ONE, TOTAL, 0)
    assert not ledger.ask("b", "b/0", ONE, TOTAL, 1)
    ledger.give_back("a", "a/0")
    assert ledger.ask("a", "a/2", ONE, TOTAL, 20)


def test_a_silent_driver_loses_its_slots():
    ledger = Ledger()
    ledger.ask("a", "a/0", {"CPU": 2.0}, TOTAL, 0)
    assert not ledger.ask("b", "b/0", ONE, TOTAL, SILENCE_SECONDS - 1)
    assert ledger.ask("b", "b/0", ONE, TOTAL, SILENCE_SECONDS + 1)


def test_a_driver_that_leaves_gives_everything_back():
    ledger = Ledger()
    ledger.ask("a", "a/0", {"CPU": 2.0}, TOTAL, 0)
    ledger.leave("a")
    assert ledger.ask("b", "b/0", {"CPU": 2.0}, TOTAL, 0)

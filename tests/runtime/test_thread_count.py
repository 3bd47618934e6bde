"""As many threads as are fastest, on machines that are simulated: quiet ones, and ones where other programs compute."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from pocketvlm.engine.scheduling.thread_count import ThreadCountPolicy, larger_counts

Machine = Callable[[int, float], tuple[float, float]]  # threads, time of day -> seconds of a step, share of processors


def simulate(
    policy: ThreadCountPolicy, machine: Machine, seconds: float, *, since: float = 0.0
) -> list[tuple[float, int]]:
    """Run steps for so long. Return when each ended, and its number of threads."""
    now, steps = since, []
    while now < since + seconds:
        count = policy.next_count(now)
        wall, share = machine(count, now)
        now += wall
        policy.record(1, wall, share * count * wall, now)
        steps.append((now, count))
    return steps


def two_cores(quiet: tuple[float, float], busy: tuple[float, float], until: float = float("inf")) -> Machine:
    """Times of a step with one thread and with two: `busy` ones before `until`."""

    def step(count: int, now: float) -> tuple[float, float]:
        disturbed = now < until
        return (busy if disturbed else quiet)[count - 1], 0.75 if disturbed and count == 2 else 0.98

    return step


def many_cores(cores: int, loops: int) -> Machine:
    """Every thread waits for the slowest, and one that shares its core is half as fast."""

    def step(count: int, _: float) -> tuple[float, float]:
        shared = max(0, count + loops - cores)
        wall = 0.08 / count * (2.5 if shared else 1)
        return wall, 1 - shared / (2 * count)

    return step


def test_on_a_quiet_machine_nothing_is_tried() -> None:
    policy = ThreadCountPolicy(2)
    steps = simulate(policy, two_cores((0.02, 0.011), (0, 0), until=0), 60)
    assert {count for _, count in steps} == {2}


@pytest.mark.parametrize("busy", [(0.020, 0.036), (0.029, 0.053), (0.001, 0.0018), (0.3, 0.55)])
def test_fewer_where_other_programs_compute(busy: tuple[float, float]) -> None:
    steps = simulate(ThreadCountPolicy(2), two_cores((0, 0), busy), 30)
    assert len(steps) > 0.92 * 30 / busy[0]


@pytest.mark.parametrize("seed", range(10))
def test_fewer_although_times_vary(seed: int) -> None:
    random = Random(seed)
    steady = two_cores((0, 0), (0.020, 0.036))

    def varying(count: int, now: float) -> tuple[float, float]:
        wall, share = steady(count, now)
        return wall * random.lognormvariate(-0.045, 0.3), share

    assert len(simulate(ThreadCountPolicy(2), varying, 30)) > 0.88 * 30 / 0.020


@pytest.mark.parametrize("seed", range(5))
def test_fewer_although_more_seem_as_fast_at_first(seed: int) -> None:
    """The system favours a thread that has slept, so the first steps with it are shorter than those that follow."""
    random, since, before = Random(seed), 0.0, 2

    def machine(count: int, now: float) -> tuple[float, float]:
        nonlocal since, before
        if count != before:
            since, before = now, count
        if count == 1:
            return random.uniform(0.029, 0.037), 0.98
        return random.uniform(0.027, 0.037) if now - since < 0.2 else 0.07, 0.75

    assert len(simulate(ThreadCountPolicy(2), machine, 30)) > 0.85 * 30 / 0.033


@pytest.mark.parametrize("step", [0.001, 0.011, 0.05])
def test_all_within_two_seconds_after_the_others_end(step: float) -> None:
    steps = simulate(ThreadCountPolicy(2), two_cores((1.8 * step, step), (1.8 * step, 3.3 * step), until=7.3), 20)
    before = [count for at, count in steps if 5 < at < 7.3]
    assert before.count(1) > 0.8 * len(before)
    assert {count for at, count in steps if at > 9.3} == {2}


def test_all_where_fewer_are_not_faster() -> None:
    """Another program computes, but does not make them wait."""
    steps = simulate(ThreadCountPolicy(2), two_cores((0, 0), (0.03, 0.02)), 60)
    assert len(steps) > 0.98 * 60 / 0.02


@pytest.mark.parametrize("loops", [0, 1, 2, 4])
def test_as_many_as_other_programs_leave(loops: int) -> None:
    policy = ThreadCountPolicy(8)
    simulate(policy, many_cores(8, loops), 10)
    assert policy.count == 8 - loops
    steps = simulate(policy, many_cores(8, 0), 10, since=10)
    assert {count for at, count in steps if at > 13} == {8}


def test_numbers_that_are_tried() -> None:
    assert [larger_counts(1, most) for most in (2, 3, 4)] == [[2], [2, 3], [2, 3, 4]]
    assert larger_counts(1, 16) == [2, 4, 8, 12, 14, 15, 16]
    assert larger_counts(13, 16) == [14, 15, 16]


def test_steps_of_different_sizes_are_not_compared() -> None:
    """Steps with one thread happen to have one row, those with two have ten."""
    policy = ThreadCountPolicy(2)
    cost = {1: 0.02, 2: 0.011}
    for number in range(2000):
        count = policy.next_count(number / 10)
        rows = 10 if count == 2 else 1
        wall = cost[count] * rows
        policy.record(rows, wall, 0.6 * count * wall, number / 10 + wall)
    assert policy.count == 2


def test_threads_of_the_background_worker_count() -> None:
    """It computes as much as its threads can, so that the decoder is not disturbed."""
    policy = ThreadCountPolicy(4, others=4)
    for number in range(1000):
        assert policy.next_count(number / 100) == 4
        policy.record(1, 0.01, 8 * 0.01, number / 100 + 0.01)
    for number in range(1000, 1100):
        policy.next_count(number / 100)
        policy.record(1, 0.01, 6 * 0.01, number / 100 + 0.01)
    assert policy.compares or policy._smaller_tried > 0


@pytest.mark.parametrize("step", [0.001, 0.03])
def test_more_are_seldom_tried_where_even_fewer_wait(step: float) -> None:
    """Two threads that wait for each other and for two programs may take seconds for one step."""
    idle = 0.0

    def machine(count: int, now: float) -> tuple[float, float]:
        nonlocal idle
        if now < 25:
            return (step, 0.66) if count == 1 else (2.0, 0.5)
        idle += (2 - count) * step
        return step / count, 1.0

    policy = ThreadCountPolicy(2, idle=lambda: idle)
    steps = simulate(policy, machine, 30)
    assert [count for at, count in steps if at < 25].count(2) == 1
    assert {count for at, count in steps if at > 26.5} == {2}


def test_more_are_tried_where_no_core_is_idle() -> None:
    """Programs of low priority may take all idle time, and leave nearly all of the processor to others."""
    steps = simulate(ThreadCountPolicy(2, idle=lambda: 0.0), two_cores((0.02, 0.011), (0.02, 0.036), until=5), 60)
    assert {count for at, count in steps if at > 7} == {2}


@pytest.mark.parametrize(("idle", "expected"), [(0.0, 1), (0.9, 2), (None, 2)])
def test_a_prompt_after_a_pause(idle: float | None, expected: int) -> None:
    """It has the threads of the last answer where other programs still take the cores, of which `idle` are free."""
    now = 0.0
    policy = ThreadCountPolicy(2, idle=lambda: None if idle is None else idle * now)
    simulate(policy, two_cores((0, 0), (0.010, 0.018)), 5.0)
    now = 5.1
    assert policy.prompt_count(now) == 1, "no pause"
    now = 60.0
    policy.prompt_count(now)
    for now in (61.0, 61.5, 62.0):
        assert policy.prompt_count(now) == expected


def test_steps_before_a_pause_are_not_compared() -> None:
    """They were shorter, with less in the cache."""
    policy = ThreadCountPolicy(2)
    simulate(policy, two_cores((0, 0), (0.010, 0.018)), 5)
    assert policy.count == 1
    simulate(policy, two_cores((0.020, 0.015), (0, 0), until=0), 0.5, since=60)
    assert policy.count == 2


def test_fewer_where_the_number_of_rows_alternates() -> None:
    """Each is compared with its own."""
    policy, now = ThreadCountPolicy(2), 0.0
    for number in range(60):
        rows, count = 1 + number % 2, policy.next_count(now)
        wall = {1: 0.020, 2: 0.036}[count] * rows
        now += wall
        policy.record(rows, wall, 0.75 * count * wall, now)
    assert policy.count == 1
    assert not policy.compares


def test_a_trial_ends_where_no_two_steps_are_alike() -> None:
    policy, compared = ThreadCountPolicy(2), []
    for number in range(1, 200):
        now, count = number / 20, policy.next_count(number / 20)
        compared.append(policy.compares)
        policy.record(number, 0.04, 0.75 * count * 0.04, now + 0.04)
    assert any(compared)
    assert not all(compared[-30:])
    assert policy.count == 2


def test_more_are_tried_again_however_long_a_trial_took() -> None:
    """Its only step was stopped for 20 seconds, as a suspended process is."""
    policy = ThreadCountPolicy(2)
    simulate(policy, two_cores((0, 0), (0.010, 0.018)), 5)
    steps = simulate(policy, lambda count, now: (20.0, 0.5) if count == 2 and now < 25 else (0.01, 1.0), 30, since=5)
    assert steps[-1][0] > 25
    steps = simulate(policy, two_cores((0.02, 0.011), (0, 0), until=0), 32, since=steps[-1][0])
    assert steps[-1][1] == 2


@pytest.mark.parametrize("step", [0.03, 0.09])
def test_all_where_steps_are_not_recorded(step: float) -> None:
    """Under load all steps have rows of prompts."""
    policy = ThreadCountPolicy(8, idle=lambda: 0.0)
    simulate(policy, many_cores(8, 4), 5)
    assert policy.count == 4
    counts = [policy.next_count(5 + number * step) for number in range(300)]
    assert counts[-1] == 8
    assert policy.prompt_count(5 + 300 * step) == 8


def test_few_recorded_steps_suffice() -> None:
    """One of 16 has no rows of prompts."""
    policy, now = ThreadCountPolicy(2), 0.0
    for number in range(16 * 30):
        count = policy.next_count(now)
        wall = {1: 0.080, 2: 0.150}[count]
        now += wall
        if number % 16 == 15:
            policy.record(1, wall, 0.75 * count * wall if count == 2 else 0.98 * wall, now)
    assert policy.count == 1

"""scheduler: which requests start and which are preempted, played through without a model."""

from collections import deque

from rollout import Group, Pages, Request, Sample, Scheduler


def answer(prefixes, G, limit, N, S, slots, sync_every, prefill_tokens):
    """What happens until all is drawn, as lines of text. prefixes: their lengths in tokens.

    limit: the tokens that each sample [group, sample] draws, as rows.
    """
    waiting = deque()
    for p, length in enumerate(prefixes):
        requests = [Request(Sample(p, g), [0] * length, limit[p][g], key=0) for g in range(G)]
        waiting.append(Group([0] * length, deque(requests)))
    scheduler = Scheduler(waiting, Pages(N), S, slots, sync_every, prefill_tokens)
    events = []
    for _ in range(500):
        if not scheduler.waiting and not scheduler.running:
            return events
        synchronise(scheduler, sync_every, events)
        fresh, started = scheduler.admit()
        for _, request in started:
            request.sample.ids.append(0)  # the first token comes from the prefix
        prefilled = [len(group.prefix) for group in fresh]
        names = [name(request) for _, request in started]
        events.append(f"prefill {prefilled} start {names} free {len(scheduler.pages.free)}")
    return [*events, "not done after 500 rounds"]


def synchronise(scheduler, sync_every, events):
    """Decode a few steps, then grow as Sampler does."""
    length_B = []
    done_B = []
    for request in scheduler.running:
        new = min(sync_every, request.limit - len(request.sample.ids))
        request.sample.ids += [0] * new
        length_B.append(request.length + new)
        done_B.append(len(request.sample.ids) == request.limit)
    scheduler.update(length_B, done_B)
    grown, preempted = scheduler.grow()
    scheduler.requeue(preempted)
    scheduler.compact()
    grown = [f"{name(request)}: {len(request.pages)} pages" for request in grown]
    preempted = [name(request) for request in preempted]
    events.append(f"grow {grown} preempt {preempted} free {len(scheduler.pages.free)}")


def name(request):
    return f"{request.sample.p}.{request.sample.g}"


def test_scheduler(check):
    check(answer)

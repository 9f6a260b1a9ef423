"""A transform that never returns holds neither an error, nor an interrupt, nor the end."""

import subprocess
import sys

import pytest

import tidegate as tg

# What a transform may wait in for ever: bytecode, a lock, sleep.
WAITS = {
    "bytecode": "while True: pass",
    "lock": "threading.Event().wait()",
    "sleep": "time.sleep(10**6)",
}
PROGRAM = """
import os, signal, sys, threading, time
import tidegate as tg

signal.signal(signal.SIGINT, signal.default_int_handler)
begun = threading.Event()

def stuck(sample, rng):
    begun.set()
    {wait}

def end(how):
    begun.wait()
    how()

def loader(**options):
    return tg.Loader(tg.synthetic(64, 8), batch_size=4, memory="16MiB", transform=stuck, **options)

{rest}
print("left", flush=True)
"""
REST = {
    "stall": """
try:
    next(iter(loader(stall_seconds=0.3)))
except tg.StalledError as error:
    assert "calls of a transform have not returned" in str(error), error
""",
    "interrupt": """
threading.Thread(target=end, args=(lambda: os.kill(os.getpid(), signal.SIGINT),)).start()
try:
    next(iter(loader(stall_seconds=600)))
except KeyboardInterrupt:
    pass
""",
    "close": """
made = loader(stall_seconds=600)
threading.Thread(target=end, args=(made.close,)).start()
try:
    next(iter(made))
except tg.Error as error:
    assert "was cut off" in str(error), error
""",
    "a second epoch": """
made = loader(stall_seconds=0.3)
for _ in range(2):
    try:
        next(iter(made))
    except tg.StalledError:
        pass
""",
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("rest", REST)
def test_a_transform_that_never_returns_is_left_behind(wait, rest):
    program = PROGRAM.format(wait=WAITS[wait], rest=REST[rest])
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_a_transform_that_was_left_behind_is_ended_and_the_budget_is_free():
    rest = (
        REST["interrupt"]
        + """
until = time.monotonic() + 90
while time.monotonic() < until:
    try:
        tg.Loader(tg.synthetic(64, 8), batch_size=4, memory="32MiB")
        break
    except tg.ConfigError:
        time.sleep(0.1)
else:
    raise SystemExit("it still runs")
"""
    )
    program = PROGRAM.format(wait=WAITS["bytecode"], rest=rest)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr


def test_an_interrupt_ends_a_transform_without_patience():
    rest = """
import tidegate.transform
tidegate.transform.Steps.interrupt.__defaults__ = (10.0**6,)
made = loader(stall_seconds=600)
threading.Thread(target=end, args=(lambda: os.kill(os.getpid(), signal.SIGINT),)).start()
try:
    next(iter(made))
except KeyboardInterrupt:
    pass
until = time.monotonic() + 60
while made._steps.running and time.monotonic() < until:
    time.sleep(0.01)
print("runs" if made._steps.running else "ended")
"""
    program = PROGRAM.format(wait=WAITS["bytecode"], rest=rest)
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "ended\nleft\n"), done.stdout + done.stderr


@pytest.mark.parametrize("call", ["close", "iter", "set_memory", "seek"])
def test_a_transform_cannot_use_its_own_loader(call):
    calls = {
        "close": lambda: loader.close(),
        "iter": lambda: next(iter(loader)),
        "set_memory": lambda: loader.set_memory("8MiB"),
        "seek": lambda: loader.seek(0),
    }

    def transform(sample, rng):
        calls[call]()
        return sample

    loader = tg.Loader(tg.synthetic(64, 8), batch_size=4, memory=tg.Budget("16MiB"), transform=transform)
    with pytest.raises(tg.Error, match="a transform cannot begin, change or close the loader that calls it"):
        next(iter(loader))

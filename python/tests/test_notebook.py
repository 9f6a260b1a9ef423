"""A real notebook kernel: its interrupt ends what hangs, and the kernel lives on."""

import time

import pytest

WAITS = {"bytecode": "while True: pass", "lock": "threading.Event().wait()", "sleep": "time.sleep(10**6)"}
MADE = """
import threading, time
import tidegate as tg

begun = threading.Event()

def stuck(sample, rng):
    begun.set()
    {wait}

def loader(memory):
    return tg.Loader(tg.synthetic(64, 8), batch_size=4, memory=memory, transform=stuck, stall_seconds=600)
"""


@pytest.fixture
def kernel():
    """A kernel, and a function that runs a cell and returns what it says and its error."""
    manager = pytest.importorskip("jupyter_client").KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)

    def run(code, interrupt_at=None):
        said, error, asked = "", None, client.execute(code)
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                said += content["text"]
                if interrupt_at is not None and interrupt_at in said:
                    interrupt_at = None
                    manager.interrupt_kernel()
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return said, error

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("wait", WAITS)
def test_an_interrupt_ends_a_cell_whose_transform_never_returns(kernel, wait):
    assert kernel(MADE.format(wait=WAITS[wait])) == ("", None)
    code = """
threading.Thread(target=lambda: (begun.wait(), print("begun", flush=True))).start()
next(iter(loader("16MiB")))
"""
    began = time.monotonic()
    said, error = kernel(code, interrupt_at="begun")
    took = time.monotonic() - began
    assert (said, error) == ("begun\n", "KeyboardInterrupt")
    # The kernel goes on.
    assert kernel("print(len(loader('16MiB')))") == ("16\n", None)
    # Without an end it would be the limit of the messages, 120 s.
    assert took < 60

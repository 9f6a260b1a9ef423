"""Keeps the peers' readers offline and quiet; Tidegate's own warnings stay errors.

Flow: environment variables, before a peer is imported; filters of warnings that peers give.
Memory: holds none.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def pytest_configure(config):
    # webdataset leaves its files to the garbage collector.
    config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")

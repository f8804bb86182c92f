"""Ctrl-C in a long prefill: KeyboardInterrupt soon, the sequence as before, the model usable."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import octavo


@pytest.mark.model
def test_interrupting_a_long_prefill(smollm2, record_property):
    with octavo.LLM(smollm2, kv="int8") as llm:
        ids = np.random.default_rng(0).integers(5, 40000, 8000).tolist()
        seq = llm.prefill(ids[:100])
        before = seq.logits.copy()
        sent = []

        def interrupt():
            time.sleep(0.7)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            seq.append(ids[100:])
            time.sleep(5)  # a machine so fast that the prefill was over: the signal comes here
        seconds = time.perf_counter() - sent[0]
        thread.join()
        record_property("seconds", seconds)
        print(f"returned after {1000 * seconds:.0f} ms")
        assert seconds < 2, "a watchdog at ten times the figure"
        if len(seq.tokens) == 100:
            np.testing.assert_array_equal(seq.logits, before)
        seq.truncate(100)
        np.testing.assert_array_equal(seq.logits, before)
        again = llm.prefill(ids[:100])
        np.testing.assert_array_equal(again.logits, before)

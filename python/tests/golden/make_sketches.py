"""Writes sketches with the C++ core of Apache DataSketches, and river's alarms.

Run with `pip install datasketches==5.2.0 river==0.26.1`. Writes sketches/ and sketches.json
next to this file.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
# No multiple of 1/n, and neither end: the libraries round differently there, and REQ of C++ has no
# exact least value.
RANKS = [(2 * i + 1) / 22 for i in range(11)]
COUNTS = [0, 1, 100, 20_000]


# (rate, length) of each part.
STREAMS = {
    "steps": [(0.2, 1000), (0.8, 1000), (0.1, 3000)],
    "drift": [(0.3 + i / 1000, 20) for i in range(300)],
    "still": [(0.5, 20_000)],
    "rare": [(0.01, 3000), (0.03, 3000), (0.01, 3000)],
}


def stream(parts):
    """Return the values of a stream, 0 or 1, and the numbers plus rate that decided them.

    The generator is x -> 1103515245 x + 12345 mod 2^31.
    """
    x, bits, reals = 42, [], []
    for rate, length in parts:
        for _ in range(length):
            x = (1103515245 * x + 12345) % 2**31
            bits.append(float(x / 2**31 < rate))
            reals.append(x / 2**31 + rate)
    return bits, reals


def alarms(detector, values):
    """Return the places of the values that raise an alarm."""
    found = []
    for at, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            found.append(at)
    return found


def registers(hll, n):
    """Return the bytes of an HLL sketch: its registers, or the list of values while shorter."""
    return hll.serialize_updatable() if n > 1000 else hll.serialize_compact()


def main():
    """Write the files."""
    import datasketches as ds
    from river import drift

    (HERE / "sketches").mkdir(exist_ok=True)
    out = {"estimates": {}, "alarms": {}}
    for n in COUNTS:
        values = [i * 7919 for i in range(n)]
        theta = ds.update_theta_sketch(12)
        cpc = ds.cpc_sketch(11)
        hlls = {f"hll{bits}": ds.hll_sketch(12, kind) for bits, kind in ((4, ds.HLL_4), (6, ds.HLL_6), (8, ds.HLL_8))}
        texts = ds.hll_sketch(12, ds.HLL_8)
        kll, req, items = ds.kll_floats_sketch(200), ds.req_floats_sketch(12), ds.frequent_strings_sketch(10)
        for i, value in enumerate(values):
            theta.update(value)
            cpc.update(value)
            texts.update(f"word {value}")
            for hll in hlls.values():
                hll.update(value)
            kll.update(float(value % 10_007))
            req.update(float(value % 10_007))
            items.update(f"word {min(i % 300, i % 7)}")
        files = {
            "theta": theta.compact().serialize(),
            "cpc": cpc.serialize(),
            "text": registers(texts, n),
            "kll": kll.serialize(),
            "req": req.serialize(),
            "items": items.serialize(),
            **{name: registers(hll, n) for name, hll in hlls.items()},
        }
        for name, content in files.items():
            (HERE / "sketches" / f"{name}-{n}.bin").write_bytes(content)
        out["estimates"][str(n)] = {
            "theta": theta.get_estimate(),
            "cpc": cpc.get_estimate(),
            "text": texts.get_estimate(),
            **{name: hll.get_estimate() for name, hll in hlls.items()},
            "kll": [kll.get_quantile(rank, True) for rank in RANKS] if n else [],
            "req": [req.get_quantile(rank, True) for rank in RANKS] if n else [],
            "items": sorted(row[:1] + row[2:4] for row in items.get_frequent_items(ds.NO_FALSE_NEGATIVES)),
        }
    for name, parts in STREAMS.items():
        bits, reals = stream(parts)
        out["alarms"][name] = {
            "parts": parts,
            "adwin_bits": alarms(drift.ADWIN(), bits),
            "adwin_reals": alarms(drift.ADWIN(delta=0.02), reals),
            "page_hinkley": alarms(drift.PageHinkley(threshold=10), reals),
        }
    (HERE / "sketches.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()

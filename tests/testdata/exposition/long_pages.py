"""Good pages of 1 MB in each format, half of that packed: longer than what is held back to be judged."""

from __future__ import annotations

import random

from tests.testdata.exposition.protobuf import delimited, family, metric

_chance = random.Random(20_240_229)
_ids = [_chance.randbytes(16).hex() for _ in range(20_000)]

LONG_TEXT = b"".join(b'fake_metric{id="%b"} 1\n' % one.encode() for one in _ids)
LONG_OPENMETRICS = LONG_TEXT + b"# EOF\n"
LONG_PROTOBUF = delimited(
    *[
        family(b"fake_%d" % at, metrics=tuple(metric(id=one) for one in _ids[at : at + 100]))
        for at in range(0, len(_ids), 100)
    ]
)

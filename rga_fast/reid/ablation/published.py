"""Results of the paper (Zhang et al., CVPR 2020): ResNet-50, rank-1 / mAP in percent.

Tables 1 to 4 for labelled CUHK03 and Market-1501, Table 5 for the other two.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """In percent."""

    rank1: float
    mAP: float


CUHK03_LABELED = {
    "none": Published(73.8, 69.0),
    "rga-s-no-relations": Published(76.8, 72.3),
    "rga-s-no-appearance": Published(78.2, 74.0),
    "rga-s": Published(79.3, 74.7),
    "rga-c-no-relations": Published(77.8, 73.7),
    "rga-c-no-appearance": Published(78.1, 74.9),
    "rga-c": Published(79.3, 75.6),
    "rga-s//c": Published(77.3, 73.4),
    "rga-cs": Published(78.6, 75.5),
    "rga-sc": Published(81.1, 77.4),
    "rga-sc-no-embedding": Published(78.6, 75.2),
    "rga-sc-symmetric": Published(79.4, 75.2),
    "cbam-s": Published(77.3, 72.8),
    "fc-s": Published(77.0, 73.0),
    "nl": Published(76.6, 72.6),
    "snl": Published(77.4, 72.4),
    "se": Published(76.3, 71.9),
    "cbam-c": Published(76.9, 72.7),
    "fc-c": Published(77.4, 72.9),
    "cbam-cs": Published(78.0, 73.0),
    "fc-s//c": Published(78.4, 73.2),
}
MARKET = {
    "none": Published(94.2, 83.7),
    "rga-s-no-relations": Published(94.3, 83.8),
    "rga-s-no-appearance": Published(95.4, 86.7),
    "rga-s": Published(96.0, 87.5),
    "rga-c-no-relations": Published(94.7, 84.8),
    "rga-c-no-appearance": Published(95.4, 87.1),
    "rga-c": Published(95.9, 87.9),
    "rga-s//c": Published(95.3, 86.6),
    "rga-cs": Published(95.3, 87.8),
    "rga-sc": Published(96.1, 88.4),
    "rga-sc-no-embedding": Published(95.2, 87.3),
    "rga-sc-symmetric": Published(95.6, 87.4),
    "cbam-s": Published(94.8, 85.6),
    "fc-s": Published(95.2, 86.2),
    "nl": Published(95.6, 87.4),
    "snl": Published(95.7, 87.3),
    "se": Published(95.2, 86.0),
    "cbam-c": Published(95.3, 86.3),
    "fc-c": Published(95.3, 86.7),
    "cbam-cs": Published(95.0, 85.6),
    "fc-s//c": Published(94.8, 85.0),
}
RESULTS = {
    "cuhk03-labeled": CUHK03_LABELED,
    "cuhk03-detected": {"none": Published(70.5, 65.5), "rga-sc": Published(79.6, 74.5)},
    "market1501": MARKET,
    "msmt17": {"none": Published(75.7, 51.5), "rga-sc": Published(80.3, 57.5)},
}

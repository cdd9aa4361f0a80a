"""The clips that models are trained and judged on: published layouts in, folds and waveforms out.

``layouts`` reads data sets with all their classes, ``splits`` merges three of them into the shipped
label set, ``folds`` and ``leaks`` set training and test apart, ``bank`` keeps decoded waveforms.
Mixing and augmentation live elsewhere.
"""

from common.datasets.bank import ClipBank as ClipBank
from common.datasets.bank import Skipped as Skipped
from common.datasets.bank import Waveform as Waveform
from common.datasets.clips import LAYOUTS as LAYOUTS
from common.datasets.clips import Clip as Clip
from common.datasets.clips import Dataset as Dataset
from common.datasets.clips import joined as joined
from common.datasets.clips import labels_of as labels_of
from common.datasets.clips import renamed as renamed
from common.datasets.folds import Parts as Parts
from common.datasets.folds import folds_of as folds_of
from common.datasets.folds import select_folds as select_folds
from common.datasets.layouts import load_layout as load_layout
from common.datasets.leaks import Dropped as Dropped
from common.datasets.leaks import Leak as Leak
from common.datasets.leaks import check_no_leaks as check_no_leaks
from common.datasets.leaks import drop_leaks as drop_leaks
from common.datasets.leaks import find_leaks as find_leaks
from common.datasets.splits import Split as Split
from common.datasets.splits import clips_of as clips_of
from common.datasets.splits import exclude_leaks as exclude_leaks
from common.datasets.splits import in_split as in_split
from common.datasets.splits import load_clips as load_clips
from common.datasets.splits import split_of as split_of

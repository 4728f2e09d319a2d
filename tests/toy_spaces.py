"""Search spaces for tests of spaces and samplers: arbitrary ones, and one of three layers that differ."""

from hypothesis import strategies as st

from training.space.search_space import SearchSpace


OPERATORS = ("MHA12", "FFN", "CONV3", "CONV5")
MIXED = SearchSpace((("MHA12", "FFN", "CONV3"), ("FFN", "CONV5", "CONV3"), ("MHA12", "FFN")))

spaces = st.lists(
    st.lists(st.sampled_from(OPERATORS), min_size=1, unique=True).map(tuple), min_size=1, max_size=6
).map(lambda layers: SearchSpace(tuple(layers)))
seeds = st.integers(0, 2**32)

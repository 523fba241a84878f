"""cli.netem: tc's units and words, both ways, and the named networks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.runtime.impair import Settings
from cli import netem


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.1%", 0.001), ("100%", 1.0), (".5%", 0.005)])
def test_shares(text, value):
    assert netem.share(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("20ms", 0.02), ("1.5s", 1.5), ("300us", 3e-4), ("2secs", 2),
                                             ("40", 4e-5)])
def test_times(text, value):
    assert netem.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("10mbit", 1e7), ("64kbit", 64e3), ("1mbps", 8e6), ("9600", 9600),
                                             ("1Gbit", 1e9), ("1kibit", 1024)])
def test_rates(text, value):
    assert netem.rate(text) == pytest.approx(value)


@pytest.mark.parametrize(("parse", "text"), [
    (netem.share, "5"), (netem.share, "101%"), (netem.share, "-1%"), (netem.share, ""), (netem.seconds, "3 days"),
    (netem.seconds, "-4ms"), (netem.rate, "fast"), (netem.rate, "1mb"), (netem.share, "nan%"), (netem.seconds, "infs")])
def test_bad_quantities_say_how_to_write_them(parse, text):
    with pytest.raises(ValueError, match=r"expected a value like|at most"):
        parse(text)


def test_words_of_tc():
    made = netem.settings({"delay": ["20ms", "5ms", "25%"], "loss": ["1%", "30%"], "queue": ["50"], "drop_nth": ["7"]})
    assert made == Settings(delay=0.02, jitter=0.005, delay_correlation=0.25, loss=0.01, loss_correlation=0.3, limit=50,
                            drop_nth=7)
    assert netem.describe(made) == "loss 1% 30% delay 20ms 5ms 25% queue 50 drop-nth 7"


def test_gemodel_defaults_are_tcs():
    assert netem.settings({"loss": ["gemodel", "1%"]}).gemodel == (0.01, 0.99, 1.0, 0.0)
    assert netem.settings({"loss": ["gemodel", "1%", "25%", "80%", "2%"]}).gemodel == (0.01, 0.25, 0.8, 0.02)


@pytest.mark.parametrize("words", [{"loss": []}, {"loss": ["5"]}, {"delay": ["1ms", "1ms", "1%", "1"]},
                                   {"speed": ["1"]},
                                   {"queue": ["0"]}, {"queue": ["x"]}, {"reorder": ["5%"]}, {"distribution": ["odd"]},
                                   {"loss": ["gemodel"]}, {"delay": ["4000s"]}])
def test_bad_words_are_refused(words):
    with pytest.raises(ValueError, match=r"."):
        netem.settings(words)


shares = st.sampled_from([0.0, 0.01, 0.25])


@given(st.builds(Settings, loss=shares, delay=st.sampled_from([0.01, 0.25]), jitter=st.sampled_from([0.0, 0.005]),
                 duplicate=shares, reorder=shares, corrupt=shares, rate=st.sampled_from([0.0, 64e3, 1e7]),
                 limit=st.sampled_from([7, 1000]), drop_nth=st.integers(0, 3), seed=st.none() | st.integers(0, 9),
                 gemodel=st.sampled_from([(), (0.01, 0.25, 1.0, 0.0)])))
def test_a_description_reads_back(settings):
    words: dict[str, list[str]] = {}
    text = netem.describe(settings).replace("loss gemodel", "gemodel").replace("drop-nth", "drop_nth").split()
    keyword = ""
    for word in text:
        if word in netem.WORDS or word == "gemodel":
            keyword = word
            words[keyword] = []
        elif word != "nothing":
            words[keyword].append(word)
    gemodel = words.pop("gemodel", None)
    read = netem.settings(words)
    if gemodel:
        read = type(read)(**{**{f: getattr(read, f) for f in read.__struct_fields__},
                             "gemodel": netem.settings({"loss": ["gemodel", *gemodel]}).gemodel})
    assert read == settings


def test_every_profile_is_well_formed():
    found = netem.profiles()
    assert {"3g", "satellite", "wifi"} <= set(found)
    for profile in found.values():
        up, down = profile.settings()
        assert profile.about
        assert not up.idle
        assert not down.idle

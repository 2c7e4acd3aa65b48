import numpy as np
import pytest

from quantlib.errors import ConfigError
from quantlib.quantization.qconfig import ACTIVATION, WEIGHT, QConfig, Scheme, check_name


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 8.0, True, "8"])
def test_bits_outside_2_to_8_are_refused_at_construction(bits):
    with pytest.raises(ConfigError, match="from 2 to 8"):
        Scheme(bits=bits)


def test_unknown_observer_is_refused_at_construction():
    with pytest.raises(ConfigError, match="did you mean 'histogram'"):
        Scheme(observer="histgram")
    with pytest.raises(ConfigError, match="per tensor only"):
        Scheme(observer="entropy", per_channel=True)


def test_defaults_are_w8_per_channel_symmetric_narrow_and_a8_affine():
    weight, activation = WEIGHT.observer_instance(axis=0), ACTIVATION.observer_instance(axis=1)
    assert (weight.quant_min, weight.quant_max, weight.axis, weight.symmetric) == (-127, 127, 0, True)
    assert (activation.quant_min, activation.quant_max, activation.axis) == (0, 255, None)


def test_signed_follows_symmetry_unless_given():
    assert Scheme(symmetric=True).is_signed and not Scheme().is_signed
    assert Scheme(signed=True).observer_instance().quant_min == -128


def test_name_beats_type_beats_default():
    four, two = Scheme(bits=4, symmetric=True), Scheme(bits=2, symmetric=True)
    config = QConfig(
        by_type={"conv": QConfig(weight=four)}, by_name={"conv1": QConfig(weight=two), "fc": None}
    )
    assert config.for_layer("conv1", "conv").weight.bits == 2
    assert config.for_layer("layer1.0.conv1", "conv").weight.bits == 4
    assert config.for_layer("classifier", "linear").weight.bits == 8
    assert (
        config.for_layer("fc", "linear").weight is None
        and config.for_layer("fc", "linear").activation is None
    )


def test_unknown_type_and_name_suggest_the_closest():
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        QConfig(by_type={"linaer": None})
    with pytest.raises(ConfigError, match=r"did you mean 'layer1\.0\.conv1'"):
        QConfig(by_name={"layer1.0.conv11": None}).check_names(["layer1.0.conv1", "fc"])
    with pytest.raises(ConfigError, match="must be a Scheme"):
        QConfig(weight=4)


def test_an_override_is_a_qconfig_or_none():
    with pytest.raises(ConfigError, match="override for 'conv1' must be a QConfig or None"):
        QConfig(by_name={"conv1": Scheme(bits=4)})


def test_what_the_scheme_says_is_no_option_of_its_observer():
    with pytest.raises(ConfigError, match="'bits' is no option of the observer; set it on the Scheme"):
        Scheme(options={"bits": 4})
    assert Scheme(bits=np.int64(4)).observer_instance().quant_max == 15


def test_an_unknown_name_where_nothing_is_known():
    with pytest.raises(ConfigError, match="there are none"):
        check_name("conv1", [], "layer")
    with pytest.raises(ConfigError, match=r"choose one of a1, a2, a3, a4, a5, a6, a7, a8, \.\.\.\."):
        check_name("zzz", [f"a{k}" for k in range(1, 10)], "layer")

"""Flags and configuration files: generated from fields, checked, and told apart by paths."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from chiplet.cli.command import ENGINE_GROUPS
from chiplet.cli.generate import DEFAULTS
from chiplet.cli.main import COMMANDS, load_command
from chiplet.cli.parsing import flags_of, parse, parser_of
from chiplet.cli.serve import COMMAND as SERVE
from chiplet.cli.settings import attribute_docs
from chiplet.config import EngineConfig, ServerOptions, option_fields
from chiplet.errors import ConfigError, RequestError
from chiplet.sampling_params import SamplingParams

GENERATE = load_command("generate")


def config_of(*words: str) -> EngineConfig:
    return parse(SERVE, words).engine_config()


def refusal(*words: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(SERVE, words)
    return caught.value


@pytest.mark.parametrize("options", [*ENGINE_GROUPS.values(), ServerOptions])
def test_every_field_is_a_flag_of_serve(options: type) -> None:
    flags = flags_of(SERVE)
    for name, info in option_fields(options):
        assert "--" + name.replace("_", "-") in flags
        assert info.help[0].isupper()
        assert info.help.endswith(".")


def test_every_group_of_the_engine_has_flags() -> None:
    groups = {each.name for each in fields(EngineConfig)} - {"explicit"}
    assert groups == set(ENGINE_GROUPS)


@pytest.mark.parametrize("name", COMMANDS)
def test_names_of_a_command_are_unique(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    names = [setting.name for setting in command.settings().values()]
    assert len(names) == len(set(names))
    assert len(flags_of(command)) == len(set(flags_of(command)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_every_flag(name: str) -> None:
    command = load_command(name)
    text = parser_of(command).format_help()
    assert all(flag in text for flag in flags_of(command))


def test_values_reach_their_fields_and_are_explicit() -> None:
    config = config_of(
        "models/tiny",
        "--page-size=32",
        "--mem-fraction-static",
        "0.5",
        "--no-radix-cache",
        "--use",
        "attention=reference",
        "--use=linear=plain",
        "--plugins",
        "a,b",
        "--plugins=c",
    )
    assert config.model.model == "models/tiny"
    assert config.cache.page_size == 32
    assert config.cache.mem_fraction_static == 0.5
    assert config.cache.radix_cache is False
    assert config.device.use == ("attention=reference", "linear=plain")
    assert config.device.plugins == ("a", "b", "c")
    assert config.explicit == {
        "model.model",
        "cache.page_size",
        "cache.mem_fraction_static",
        "cache.radix_cache",
        "device.use",
        "device.plugins",
    }


def test_nothing_given_is_the_default() -> None:
    assert config_of() == EngineConfig()


def test_server_options_are_not_the_engines() -> None:
    given = parse(SERVE, ["--port", "0"])
    assert given.options("server", ServerOptions()).port == 0
    assert given.engine_config().explicit == frozenset()


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        (["--page-size", "0"], "--page-size is 0; allowed: 1 to 1024.", "Leave it out to get 16."),
        (["--page-size", "x"], "--page-size is 'x'; allowed: a whole number", "16"),
        (["--page-size", "1.5"], "--page-size is '1.5'", "16"),
        (["--mem-fraction-static", "nan"], "--mem-fraction-static is nan", "0.8"),
        (["--dtype", "bflot16"], "--dtype is 'bflot16'; allowed: auto", "'bfloat16'?"),
        (["--pge-size", "4"], "Unknown flag '--pge-size'.", "'--page-size'?"),
        (["--page_size", "4"], "Unknown flag '--page_size'.", "'--page-size'?"),
        (["--page", "4"], "Unknown flag '--page'.", "--page-size"),
        (["--port"], "Argument --port: expected one argument.", "chiplet serve --help"),
        (["a", "b"], "Unexpected argument 'b'.", "chiplet serve --help"),
        (["a", "--model", "b"], "MODEL is given twice", "Give one"),
    ],
)
def test_a_wrong_word_is_told_with_a_remedy(words: list[str], problem: str, remedy: str) -> None:
    error = refusal(*words)
    assert problem in error.problem
    assert remedy in error.remedy


def test_file_gives_values_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "page_size: 8\nradix_cache: false\nplugins: [a, b]\nport: 9\nmodel: 7\nuse: attention=x\n"
        "max_total_tokens:\n"
    )
    given = parse(SERVE, ["--config", str(file), "--page-size", "4"])
    config = given.engine_config()
    assert config.cache.page_size == 4
    assert config.cache.radix_cache is False
    assert config.cache.max_total_tokens is None
    assert config.device.plugins == ("a", "b")
    assert config.device.use == ("attention=x",)
    assert config.model.model == "7"
    assert given.options("server", ServerOptions()).port == 9
    assert "cache.radix_cache" in config.explicit


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("pagesize: 8", "unknown key 'pagesize'", "'page_size'?"),
        ("page-size: 8", "unknown key 'page-size'", "'page_size'?"),
        ("page_size: big", "'big'", "16"),
        ("page_size: true", "'True'", "16"),
        ("page_size: [1]", "list or mapping", "one value"),
        ("page_size:", "has no value", "16"),
        ("radix_cache: maybe", "'maybe'; allowed: true, false", ""),
        ("- 1", "holds no mapping", "page_size: 16"),
        ("a: [", "is not YAML", "page_size: 16"),
    ],
)
def test_a_wrong_file_is_told_with_a_remedy(
    tmp_path: Path, text: str, problem: str, remedy: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    error = refusal("--config", str(file))
    assert problem in error.problem
    assert remedy in error.remedy


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in refusal("--config", str(tmp_path / "no.yaml")).problem


def test_empty_file_gives_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("# nothing\n")
    assert config_of("--config", str(file)) == EngineConfig()


def test_sampling_flags_come_from_the_docstring() -> None:
    told = attribute_docs(SamplingParams)
    assert set(told) == {each.name for each in fields(SamplingParams)}
    assert told["top_k"].startswith("Sample among the k likeliest")
    assert "multiplied)" in told["repetition_penalty"], "the second line of the text is missing"


def test_sampling_values_reach_their_fields() -> None:
    words = ["Hi", "--temperature", "0", "--stop", "a,b", "--stop", "c", "--stop-token-ids", "5"]
    given = parse(GENERATE, [*words, "--logit-bias", "7=-1.5", "--ignore-eos", "--seed=-3"])
    params = given.sampling(DEFAULTS)
    assert params.temperature == 0.0
    assert params.stop == ("a,b", "c")
    assert params.stop_token_ids == (5,)
    assert params.logit_bias == {7: -1.5}
    assert params.ignore_eos
    assert params.seed == -3
    assert params.max_tokens == DEFAULTS.max_tokens


def test_sampling_out_of_range_is_refused() -> None:
    with pytest.raises(RequestError, match="top_p is 2"):
        parse(GENERATE, ["Hi", "--top-p", "2"]).sampling(DEFAULTS)


def test_a_bias_without_a_number_is_told() -> None:
    with pytest.raises(ConfigError, match="--logit-bias is '7'"):
        parse(GENERATE, ["Hi", "--logit-bias", "7"])

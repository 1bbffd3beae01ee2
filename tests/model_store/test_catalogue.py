"""The package's models and the user's own: what models.toml may say, and what is said where it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.catalogue import (
    SHAPE_KEYS,
    Catalogue,
    catalogue_path,
    expanded,
    read_catalogue,
    require_name,
    require_repository,
)
from zephyr_local.model_store.names import folded

SHAPE = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 128, "n_vocab": 300, "n_ctx_train": 512}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "models.toml"


def read(file: Path, text: str | bytes) -> Catalogue:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_catalogue(file)


def shape_toml(**changes: object) -> str:
    values = {**SHAPE, **changes}
    return "[models.mine.shape]\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None)


class TestPackaged:
    def test_it_has_both_zephyrs_with_what_a_user_should_know_of_them(self, file):
        catalogue = read_catalogue(file)
        assert list(catalogue.entries) == ["zephyr-7b-beta", "zephyr-7b-alpha"]
        for entry in catalogue.entries.values():
            assert "MIT" in entry.licence
            assert "Apache-2.0" in entry.licence
            assert entry.template == "zephyr"
            assert entry.prompt
            assert entry.title
            assert not entry.is_own
            assert entry.checkpoint == f"HuggingFaceH4/{entry.name}"
            assert [folded(repository) for repository in entry.gguf] == [f"thebloke/{entry.name}-gguf"]

    def test_the_shape_is_mistral_7bs(self, file):
        """That of HuggingFaceH4/zephyr-7b-beta/config.json: 7.24 billion weights."""
        entry = read_catalogue(file).entry("zephyr-7b-beta")
        shape = entry.shape
        n_kv = shape["n_embd"] // shape["n_head"] * shape["n_head_kv"]
        n_block = 2 * shape["n_embd"] ** 2 + 2 * shape["n_embd"] * n_kv + 3 * shape["n_embd"] * shape["n_ff"]
        n_norms = (2 * shape["n_layer"] + 1) * shape["n_embd"]
        assert shape["n_layer"] * n_block + 2 * shape["n_vocab"] * shape["n_embd"] + n_norms == 7_241_732_096

    @pytest.mark.parametrize("name", ["zephyr-7b-beta", "Zephyr_7B.beta", "ZEPHYR 7B BETA"])
    def test_an_entry_is_found_however_its_name_is_written(self, file, name):
        assert read_catalogue(file).entry(name).name == "zephyr-7b-beta"

    @pytest.mark.parametrize("name", ["", "-", "zephyr", "zephyr-7b", "TheBloke/zephyr-7B-beta-GGUF", "x" * 10_000])
    def test_other_names_are_not_known(self, file, name):
        assert read_catalogue(file).entry(name) is None

    @pytest.mark.parametrize(
        ("repository", "name"),
        [
            ("TheBloke/zephyr-7B-beta-GGUF", "zephyr-7b-beta"),
            ("thebloke/ZEPHYR-7b-alpha-gguf", "zephyr-7b-alpha"),
            ("HuggingFaceH4/zephyr-7b-beta", "zephyr-7b-beta"),
            ("TheBloke/zephyr-7B-beta", None),
            ("", None),
        ],
    )
    def test_an_entry_is_found_by_its_repositories(self, file, repository, name):
        entry = read_catalogue(file).entry_of_repository(repository)
        assert (entry and entry.name) == name

    def test_an_entry_without_repositories_is_not_that_of_an_empty_name(self, file):
        assert read(file, '[models.mine]\ntitle = "x"\n').entry_of_repository("") is None


class TestOwn:
    def test_without_a_file_there_are_the_packages_alone_and_none_is_made(self, file):
        catalogue = read_catalogue(file)
        assert (catalogue.path, catalogue.aliases, catalogue.folders) == (file, {}, ())
        assert not file.parent.exists()

    def test_the_users_file_is_in_the_folder_of_the_configuration(self, home):
        catalogue_path().parent.mkdir(parents=True)
        catalogue_path().write_text('[aliases]\nmine = "zephyr-7b-beta"\n')
        assert read_catalogue().alias("mine") == "zephyr-7b-beta"
        assert catalogue_path().is_relative_to(home)

    @pytest.mark.parametrize("text", ["", "\ufeff", "# nothing\r\n", "[models]\n[aliases]\n", "folders = []"])
    def test_a_file_that_says_nothing(self, file, text):
        catalogue = read(file, text)
        assert len(catalogue.entries) == 2
        assert (catalogue.aliases, catalogue.folders) == ({}, ())

    def test_all_that_an_entry_may_say(self, file):
        catalogue = read(
            file,
            '[models.mine]\ntitle = "Mein Modell, größer"\nlicence = "MIT"\ncheckpoint = "me/mine"\n'
            f'template = "zephyr"\nprompt = "Say please."\ngguf = ["me/mine-GGUF", "you/mine-GGUF"]\n{shape_toml()}',
        )
        entry = catalogue.entry("Mine")
        assert (entry.name, entry.title, entry.licence) == ("mine", "Mein Modell, größer", "MIT")
        assert (entry.checkpoint, entry.template, entry.prompt) == ("me/mine", "zephyr", "Say please.")
        assert entry.gguf == ("me/mine-GGUF", "you/mine-GGUF")
        assert entry.shape == SHAPE
        assert set(entry.shape) == set(SHAPE_KEYS)
        assert entry.is_own

    def test_an_entry_may_say_nothing(self, file):
        entry = read(file, "[models.mine]\n").entry("mine")
        assert (entry.title, entry.licence, entry.gguf, entry.checkpoint, entry.shape) == ("", "", (), None, None)

    def test_an_own_entry_replaces_the_packages_of_that_name(self, file):
        catalogue = read(file, '[models.ZEPHYR_7b_beta]\ngguf = ["me/other-GGUF"]\n')
        assert len(catalogue.entries) == 2
        entry = catalogue.entry("zephyr-7b-beta")
        assert (entry.name, entry.gguf, entry.licence, entry.is_own) == ("ZEPHYR_7b_beta", ("me/other-GGUF",), "", True)
        assert catalogue.entry_of_repository("TheBloke/zephyr-7B-beta-GGUF") is None

    def test_a_repository_that_both_name_is_the_own_entrys(self, file):
        catalogue = read(file, '[models.mine]\ngguf = ["TheBloke/zephyr-7B-beta-GGUF"]\n')
        assert catalogue.entry_of_repository("TheBloke/zephyr-7B-beta-GGUF").name == "mine"
        assert catalogue.entry("zephyr-7b-beta").name == "zephyr-7b-beta"

    def test_aliases_are_found_however_they_are_written(self, file):
        catalogue = read(file, '[aliases]\nMy_Fast = "hf:a/b:q4_0"\npath = "/a folder/é.gguf"\n')
        assert catalogue.alias("my-fast") == "hf:a/b:q4_0"
        assert catalogue.alias("PATH") == "/a folder/é.gguf"
        assert catalogue.aliases["my-fast"] == ("My_Fast", "hf:a/b:q4_0")
        assert catalogue.alias("myfast") is None
        assert catalogue.alias("") is None

    def test_folders_count_from_the_files_own(self, file, home):
        catalogue = read(file, 'folders = ["/mnt/models", "~/more models", "beside", "ü"]\n')
        beside = file.parent
        assert catalogue.folders == (Path("/mnt/models"), home / "more models", beside / "beside", beside / "ü")

    def test_somebody_elses_home_that_is_not_known_stays_as_it_is_written(self):
        assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


class TestMalformed:
    """Every message names the file and the key; Python's own errors do not come out."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model = 1", "model is not known; models, aliases and folders are"),
            ("x" * 5000 + " = 1", "is not known"),
            ("models = 1", "models is no table"),
            ("[[models]]", "models is no table"),
            ("models.mine = 1", "models.mine is no table"),
            ("[models.mine]\nlicense = 'MIT'", "models.mine.license is not known; title, licence"),
            ("[models.mine]\ntitle = 1", "models.mine.title is no text"),
            ("[models.mine]\nlicence = ['MIT']", "models.mine.licence is no text"),
            ("[models.mine]\ntemplate = true", "models.mine.template is no text"),
            ("[models.mine]\nprompt = {}", "models.mine.prompt is no text"),
            ("[models.mine]\ncheckpoint = 1979-05-27", "models.mine.checkpoint is no text"),
            ("[models.mine]\ncheckpoint = 'mine'", "models.mine.checkpoint: 'mine' is not a repository"),
            ("[models.mine]\ncheckpoint = ''", "models.mine.checkpoint: '' is not a repository"),
            ("[models.mine]\ngguf = 'a/b'", "models.mine.gguf is no list of repositories"),
            ("[models.mine]\ngguf = ['a/b', 1]", "models.mine.gguf is no list of repositories"),
            ("[models.mine]\ngguf = ['a/b', '../c']", "models.mine.gguf: '../c' is not a repository"),
            ("[models.mine]\ngguf = ['hf:a/b']", "models.mine.gguf: 'hf:a/b' is not a repository"),
            ("[models.mine]\nshape = 1", "models.mine.shape is no table"),
            ("[models.mine]\nshape = false", "models.mine.shape is no table"),
            ("[models.mine]\nshape = {}", "models.mine.shape.n_layer is missing"),
            (shape_toml(n_ff=None), "models.mine.shape.n_ff is missing"),
            (shape_toml(n_layers=3), "models.mine.shape.n_layers is not known; n_layer, "),
            (shape_toml(n_vocab=0), "models.mine.shape.n_vocab is no whole number from 1 to 1048576"),
            (shape_toml(n_layer=-1), "models.mine.shape.n_layer is no whole number from 1 to 512"),
            (shape_toml(n_layer=513), "models.mine.shape.n_layer is no whole number from 1 to 512"),
            (shape_toml(n_layer=1 << 62), "models.mine.shape.n_layer is no whole number from 1 to 512"),
            (shape_toml(n_embd=64.0), "models.mine.shape.n_embd is no whole number from 1 to 65536"),
            (shape_toml(n_embd="true"), "models.mine.shape.n_embd is no whole number from 1 to 65536"),
            (shape_toml(n_embd="'64'"), "models.mine.shape.n_embd is no whole number from 1 to 65536"),
            (shape_toml(n_head=5), "models.mine.shape.n_head does not divide n_embd"),
            (shape_toml(n_head_kv=3), "models.mine.shape.n_head_kv does not divide n_head"),
            (shape_toml(n_head_kv=8), "models.mine.shape.n_head_kv does not divide n_head"),
            ("[models.'a b']", "models: 'a b' cannot be a model's name"),
            ("[models.'']", "models: '' cannot be a model's name"),
            ("[models.'../x']", "models: '../x' cannot be a model's name"),
            ("[models.é]", "is not TOML"),
            ("[models.'é']", "models: 'é' cannot be a model's name"),
            ('[models."\\u001b[2J"]', r"models: '\x1b[2J' cannot be a model's name"),
            ("[models.'x.gguf']", "models: 'x.gguf' cannot be a model's name"),
            (f"[models.{'x' * 97}]", "cannot be a model's name"),
            ("[models.a-b]\n[models.A_b]", "models.A_b and models.a-b are the same name"),
            ("aliases = []", "aliases is no table"),
            ("aliases.mine = 1", "aliases.mine is not the name of a model"),
            ("aliases.mine = ''", "aliases.mine is not the name of a model"),
            ("aliases.mine = ' - '", "aliases.mine is not the name of a model"),
            ('aliases.mine = "a\\u0000b"', "aliases.mine is not the name of a model"),
            (f"aliases.mine = '{'x' * 10_000}'", "aliases.mine is not the name of a model"),
            ("[aliases.mine]\ntarget = 'a'", "aliases.mine is not the name of a model"),
            ("aliases.mine = 'hf:alone'", "aliases.mine: 'hf:alone' is not the name of a repository"),
            ("aliases.mine = 'hf:a/b:small'", "aliases.mine: 'small' in 'hf:a/b:small' is not a type"),
            ("aliases.'hf:a/b' = 'x'", "aliases: 'hf:a/b' cannot be a model's name"),
            ("[aliases]\na-b = 'x'\na_b = 'y'", "aliases.a_b and aliases.a-b are the same name"),
            ("folders = '/mnt'", "folders is no list of folders"),
            ("folders = ['/mnt', 1]", "folders is no list of folders"),
            ("folders = ['']", "folders is no list of folders"),
            ('folders = ["a\\u0000b"]', "folders is no list of folders"),
            ("[folders]", "folders is no list of folders"),
            ("[models", "is not TOML: "),
            ("aliases.a = 'x'\naliases.a = 'y'", "is not TOML: "),
            ("a = " + "[" * 100_000, "is nested too deeply"),
            ("a = " + "1" * 5000, "is not TOML: "),
            (b"\xff\xfe", "is not UTF-8"),
            (b"# " + b"x" * (1 << 20), "is over the limit of 1048576 bytes"),
        ],
    )
    def test_the_message_names_file_and_key(self, file, text, words):
        with pytest.raises(InvalidInputError) as refused:
            read(file, text)
        assert words in refused.value.problem
        assert str(file) in refused.value.problem
        assert refused.value.remedy
        assert len(str(refused.value)) < 1000
        assert "\x1b" not in str(refused.value)

    def test_an_error_of_toml_is_told_with_its_line(self, file):
        with pytest.raises(InvalidInputError, match="line 2, column 1") as refused:
            read(file, "[models.mine]\n=\n")
        assert refused.value.remedy == "Correct the file", "and not what tells where the configuration is"

    def test_what_is_no_file_is_not_waited_for(self, file):
        file.mkdir(parents=True)
        with pytest.raises(InvalidInputError, match=r"models\.toml is not a file"):
            read_catalogue(file)


class TestRequired:
    @pytest.mark.parametrize("name", ["a", "0", "zephyr-7b-beta", "My.Model_2", "x" * 96, "gguf", "q4_k_m"])
    def test_names(self, name):
        assert require_name(name) == name

    @pytest.mark.parametrize(
        "name", ["", "-a", ".a", "_a", "a b", "a/b", "a:b", "a\n", "a\0", "ä", "hf:a", "~", "a.GGUF", "x" * 10_000]
    )
    def test_what_is_no_name(self, name):
        with pytest.raises(InvalidInputError, match="cannot be a model's name") as refused:
            require_name(name)
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize("name", ["a/b", "_a/_b", "TheBloke/zephyr-7B-beta-GGUF", f"{'a' * 96}/{'b' * 96}"])
    def test_repositories(self, name):
        assert require_repository(name) == name

    @pytest.mark.parametrize(
        "name",
        ["", "a", "a/", "/a", "a/b/c", "a/..", "../a", "a/.b", "a/-b", "a b/c", "a/b\n", "hf:a/b", "ä/b", "a/" * 5000],
    )
    def test_what_is_no_repository(self, name):
        with pytest.raises(InvalidInputError, match="is not a repository") as refused:
            require_repository(name)
        assert len(str(refused.value)) < 500

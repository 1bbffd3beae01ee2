"""What a user may type for a model, and which names are the same."""

from __future__ import annotations

import os
import unicodedata

import pytest

from zephyr_local.errors import InvalidInputError
from zephyr_local.model_store.names import (
    HubName,
    canonical_type,
    folded,
    is_hub_name,
    is_type,
    looks_like_path,
    parse_hub_name,
    shown_name,
    split_type,
    type_in_name,
    without_hub_host,
)

pytestmark = pytest.mark.timeout(60)  # a pattern that tries every way of reading a long name never ends

LONG = "a" * 10_000
ZEPHYR = "TheBloke/zephyr-7B-beta-GGUF"


class TestHubNames:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (f"hf:{ZEPHYR}", HubName(ZEPHYR)),
            (f"hf:{ZEPHYR}:q4_k_m", HubName(ZEPHYR, file_type="Q4_K_M")),
            (f"hf:{ZEPHYR}:UD-Q4_K_XL", HubName(ZEPHYR, file_type="Q4_K_XL")),
            (f"hf:{ZEPHYR}:fp16@main", HubName(ZEPHYR, file_type="F16", revision="main")),
            (f"hf:{ZEPHYR}@refs/pr/1", HubName(ZEPHYR, revision="refs/pr/1")),
            (f"hf:{ZEPHYR}/z.gguf", HubName(ZEPHYR, "z.gguf")),
            (f"hf:{ZEPHYR}/Q8_0/z-00001-of-2.gguf@0123abc", HubName(ZEPHYR, "Q8_0/z-00001-of-2.gguf", None, "0123abc")),
            (f"hf:{ZEPHYR}/a folder/é ü.gguf", HubName(ZEPHYR, "a folder/é ü.gguf")),
            (r"hf:TheBloke\zephyr-7B-beta-GGUF\sub\z.gguf", HubName(ZEPHYR, "sub/z.gguf")),
            (ZEPHYR, HubName(ZEPHYR)),
            (f"{ZEPHYR}:q8_0", HubName(ZEPHYR, file_type="Q8_0")),
        ],
    )
    def test_each_form_is_understood_and_written_so_again(self, text, name):
        assert parse_hub_name(text) == name
        assert parse_hub_name(str(name)) == name

    def test_a_name_is_written_as_the_user_would_type_it(self):
        assert str(HubName("a/b", None, "Q4_K_M", "main")) == "hf:a/b:q4_k_m@main"
        assert str(HubName("a/b", "c/d.gguf", None, "main")) == "hf:a/b/c/d.gguf@main"
        assert str(HubName("a/b")) == "hf:a/b"

    @pytest.mark.parametrize(
        "text",
        [
            "hf:",
            "hf:/",
            "hf:alone",
            "hf:a/",
            "hf:/b",
            "hf:a//b",
            "hf:a/b/",
            "hf:a/b:",
            "hf:a/b@",
            "hf:a/b@main@main",
            "hf:a/b@main:q4_k_m",  # the type stands before the revision
            "hf:a/b:q4_k_m/file.gguf",
            "hf:a@main/b",
            "hf::q4_k_m",
            "hf:" + LONG,
            "hf:" + "/" * 10_000,
            "hf:a/b" + "@" * 10_000,
        ],
    )
    def test_what_is_no_repository_is_refused_with_the_forms_that_are(self, text):
        with pytest.raises(InvalidInputError, match="is not the name of a repository") as refused:
            parse_hub_name(text)
        assert "hf:OWNER/REPO:TYPE" in refused.value.remedy
        assert "@REVISION" in refused.value.remedy
        assert len(str(refused.value)) < 1000

    @pytest.mark.parametrize("word", ["q4km", "4bit", "small", "q9_0", "q4_k_m!", "q4_" + LONG, "\x1b[2J"])
    def test_what_is_no_type_is_refused(self, word):
        with pytest.raises(InvalidInputError, match="is not a type") as refused:
            parse_hub_name(f"hf:{ZEPHYR}:{word}")
        assert len(str(refused.value)) < 1000
        assert "\x1b" not in str(refused.value)

    @pytest.mark.parametrize(
        "host", ["https://huggingface.co", "http://hf.co", "https:/HuggingFace.co", "https://www.hf.co"]
    )
    @pytest.mark.parametrize(
        ("page", "means"),
        [
            ("a/b", "hf:a/b"),
            ("a/b/", "hf:a/b"),
            ("a/b?library=gguf#files", "hf:a/b"),
            ("a/b:q4_k_m", "hf:a/b:q4_k_m"),
            ("a/b/tree/main", "hf:a/b@main"),
            ("a/b/tree/refs%2Fpr%2F1", "hf:a/b@refs/pr/1"),
            ("a/b/blob/main/c.Q4_0.gguf", "hf:a/b/c.Q4_0.gguf@main"),
            ("a/b/resolve/0123abc/d/c%20d.gguf?download=true", "hf:a/b/d/c d.gguf@0123abc"),
            ("a/b/raw/main/c.gguf", "hf:a/b/c.gguf@main"),
        ],
    )
    def test_the_address_of_a_page_is_a_name(self, host, page, means):
        assert is_hub_name(f"{host}/{page}")
        assert not looks_like_path(f"{host}/{page}")
        assert str(parse_hub_name(f"{host}/{page}")) == means

    @pytest.mark.parametrize(
        "page", ["", "a", "datasets/a/b", "spaces/a/b", "a/b/discussions", "a/b/blob/main", "a/b/c.gguf", "a//b"]
    )
    def test_the_address_of_another_page_is_refused(self, page):
        with pytest.raises(InvalidInputError, match="is not the name of a repository"):
            parse_hub_name(f"https://huggingface.co/{page}")

    def test_addresses_of_the_hub_that_is_set_count_and_others_do_not(self, monkeypatch):
        address = "http://127.0.0.1:8000/hub/a/b/blob/main/c.gguf"
        assert not is_hub_name(address)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:8000/hub/")
        assert str(parse_hub_name(address)) == "hf:a/b/c.gguf@main"
        assert not is_hub_name("https://example.com/a/b")

    def test_only_the_prefix_says_that_a_name_is_a_repositorys(self):
        assert is_hub_name("hf:a/b")
        assert not is_hub_name("a/b")
        assert not is_hub_name("hf.co/a/b")

    @pytest.mark.parametrize(
        ("text", "rest"),
        [
            ("hf.co/TheBloke/zephyr:Q4_K_M", "TheBloke/zephyr:Q4_K_M"),
            ("HuggingFace.co/a/b", "a/b"),
            ("hf.com/a/b", None),
            ("a/hf.co/b", None),
            ("hf.co", None),
        ],
    )
    def test_ollamas_names_of_the_hub_are_told_from_others(self, text, rest):
        assert without_hub_host(text) == rest


class TestTypes:
    @pytest.mark.parametrize(
        ("stem", "base", "file_type"),
        [
            # TheBloke
            ("zephyr-7b-beta.Q4_K_M", "zephyr-7b-beta", "Q4_K_M"),
            ("zephyr-7b-beta.Q8_0", "zephyr-7b-beta", "Q8_0"),
            ("mistral-7b-v0.1.Q5_K_S", "mistral-7b-v0.1", "Q5_K_S"),
            ("mistral-7b-instruct-v0.2.Q2_K", "mistral-7b-instruct-v0.2", "Q2_K"),
            # bartowski, lmstudio-community
            ("Mistral-7B-Instruct-v0.3-IQ4_XS", "Mistral-7B-Instruct-v0.3", "IQ4_XS"),
            ("Mistral-7B-Instruct-v0.3-Q6_K_L", "Mistral-7B-Instruct-v0.3", "Q6_K_L"),
            ("Llama-3.2-1B-Instruct-f16", "Llama-3.2-1B-Instruct", "F16"),
            ("Llama-3.2-1B-Instruct-Q4_0_4_8", "Llama-3.2-1B-Instruct", "Q4_0_4_8"),
            ("Meta-Llama-3.1-8B-Instruct-IQ4_NL", "Meta-Llama-3.1-8B-Instruct", "IQ4_NL"),
            ("mistralai_Mistral-Small-24B-Q3_K_XL", "mistralai_Mistral-Small-24B", "Q3_K_XL"),
            ("gemma-2-2b-it-IQ3_XXS", "gemma-2-2b-it", "IQ3_XXS"),
            # unsloth
            ("gemma-3-4b-it-UD-Q4_K_XL", "gemma-3-4b-it", "Q4_K_XL"),
            ("gemma-3-4b-it-UD-IQ1_S", "gemma-3-4b-it", "IQ1_S"),
            ("Qwen3-0.6B-BF16", "Qwen3-0.6B", "BF16"),
            # mradermacher
            ("zephyr-7b-beta.i1-Q4_K_M", "zephyr-7b-beta", "Q4_K_M"),
            ("zephyr-7b-beta.IQ3_M", "zephyr-7b-beta", "IQ3_M"),
            # llama.cpp's own tools, and converters' of 2023
            ("ggml-model-q4_0", "ggml-model", "Q4_0"),
            ("ggml-model-f16", "ggml-model", "F16"),
            ("zephyr-7b-beta_fp16", "zephyr-7b-beta", "F16"),
            ("zephyr.fp32", "zephyr", "F32"),
            ("bitnet-b1.58-TQ2_0", "bitnet-b1.58", "TQ2_0"),
            ("gpt-oss-20b-mxfp4", "gpt-oss-20b", "MXFP4"),
            ("gpt-oss-20b-MXFP4_MOE", "gpt-oss-20b", "MXFP4_MOE"),
            # Ollama's tags
            ("7b-beta-q4_K_M", "7b-beta", "Q4_K_M"),
            ("7b-beta-fp16", "7b-beta", "F16"),
            # nothing but a type, in a folder that has the name
            ("Q4_K_M", "", "Q4_K_M"),
            ("UD-Q4_K_XL", "", "Q4_K_XL"),
            # none
            ("zephyr-7b-beta", "zephyr-7b-beta", None),
            ("mistral-7b-v0.1", "mistral-7b-v0.1", None),
            ("Llama-3.2-1B", "Llama-3.2-1B", None),
            ("model-v1_5", "model-v1_5", None),
            ("zephyr-7b-sft-qlora", "zephyr-7b-sft-qlora", None),
            ("zephyrq4_0", "zephyrq4_0", None),
            ("zephyr-Q4_K_M-GGUF", "zephyr-Q4_K_M-GGUF", None),
            ("zephyr-7b-beta.Q4_K_M.imatrix", "zephyr-7b-beta.Q4_K_M.imatrix", None),
            ("Q8_0-00001-of-00003", "Q8_0-00001-of-00003", None),  # whose part is taken off before
            ("zephyr-q4_k_m\n", "zephyr-q4_k_m\n", None),
            ("zephyr-q٤_0", "zephyr-q٤_0", None),
            ("", "", None),
        ],
    )
    def test_the_type_in_a_files_name(self, stem, base, file_type):
        assert type_in_name(stem) == (base, file_type)

    @pytest.mark.parametrize(
        ("text", "spelled"),
        [
            ("q4_k_m", "Q4_K_M"),
            ("Q8_0", "Q8_0"),
            ("q1_0", "Q1_0"),
            ("tq1_0", "TQ1_0"),
            ("FP16", "F16"),
            ("fp32", "F32"),
            ("bf16", "BF16"),
            ("mxfp4", "MXFP4"),
            ("nvfp4", "NVFP4"),
            ("ud-q4_k_xl", "Q4_K_XL"),
            ("i1-iq2_xxs", "IQ2_XXS"),
        ],
    )
    def test_types_have_one_spelling(self, text, spelled):
        assert is_type(text)
        assert canonical_type(text) == spelled
        assert canonical_type(spelled) == spelled

    def test_every_type_that_is_written_here_is_known(self):
        from zephyr_local.quantize.types import FileType

        for kind in FileType:
            assert is_type(kind.name)
            assert canonical_type(kind.name.lower()) == kind.name
            assert type_in_name(f"zephyr-7b-beta-{kind.name}") == ("zephyr-7b-beta", kind.name)

    @pytest.mark.parametrize("text", ["", "q", "q4_", "7b", "latest", "f8", "int8", "q4_k_m ", "q4-k-m", "beta"])
    def test_other_words_are_no_types(self, text):
        assert not is_type(text)

    def test_no_type_stays_none(self):
        assert canonical_type(None) is None

    @pytest.mark.parametrize("text", ["q4" + "_a" * 5000 + "!", "q4" + "_" * 10_000, "-q4_k_m" * 2000, "q4" * 5000])
    def test_long_names_are_read_at_once(self, text):
        assert not is_type(text)
        type_in_name(text)
        split_type(f"zephyr:{text}")
        folded(text)

    @pytest.mark.parametrize(
        ("name", "base", "file_type"),
        [
            ("zephyr-7b-beta:q4_k_m", "zephyr-7b-beta", "Q4_K_M"),
            (f"{ZEPHYR}:UD-Q4_K_XL", ZEPHYR, "Q4_K_XL"),
            ("hf.co/a/b:Q8_0", "hf.co/a/b", "Q8_0"),
            ("zephyr:7b:fp16", "zephyr:7b", "F16"),
            ("zephyr:7b", "zephyr:7b", None),
            ("zephyr:7b-beta-q4_K_M", "zephyr:7b-beta-q4_K_M", None),
            ("zephyr:", "zephyr:", None),
            (":q4_k_m", ":q4_k_m", None),
            ("q4_k_m", "q4_k_m", None),
        ],
    )
    def test_the_type_behind_a_name(self, name, base, file_type):
        assert split_type(name) == (base, file_type)


class TestFolding:
    @pytest.mark.parametrize(
        "name",
        [
            "zephyr-7b-beta",
            "Zephyr-7B-Beta",
            "zephyr_7b_beta",
            "ZEPHYR.7B.BETA",
            "zephyr 7b beta",
            "zephyr:7b-beta",
            "-zephyr--7b__beta-",
            "zephyr.-_:7b\tbeta\n",
        ],
    )
    def test_case_and_separators_are_alike(self, name):
        assert folded(name) == "zephyr-7b-beta"

    @pytest.mark.parametrize("name", ["zephyr-7b-alpha", "zephyr7bbeta", "zephyr-7b-beta-2", "org/zephyr-7b-beta", ""])
    def test_other_names_are_others(self, name):
        assert folded(name) != folded("zephyr-7b-beta")

    def test_accents_are_alike_however_they_are_put_together(self):
        name = "Zéphyr-Ü"
        assert folded(unicodedata.normalize("NFD", name)) == folded(unicodedata.normalize("NFC", name))

    @pytest.mark.parametrize("name", ["", "-", "...", " _ ", ":::", "-" * 10_000])
    def test_nothing_but_separators_is_no_name(self, name):
        assert folded(name) == ""


class TestPaths:
    @pytest.mark.parametrize(
        "text",
        [
            "zephyr.gguf",
            "ZEPHYR.GGUF",
            "models/zephyr.gguf",
            "a folder/é ü.gguf",
            "./zephyr",
            "../zephyr",
            ".",
            "~",
            "~/zephyr",
            "~somebody/zephyr",
            "/zephyr",
            "/models/a",
            "models/",
            "a/b/c",
            "a//b",
            "v1.0/models/zephyr",
            "/" * 10_000,
        ],
    )
    def test_what_can_only_be_a_path(self, text):
        assert looks_like_path(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "zephyr-7b-beta",
            "zephyr-7b-beta:q4_k_m",
            "zephyr-7b-beta.Q4_K_M",
            "zephyr:7b",
            ZEPHYR,
            f"{ZEPHYR}:q4_k_m",
            f"hf:{ZEPHYR}",
            f"hf:{ZEPHYR}/z.gguf",
            f"hf:{ZEPHYR}/sub/z.gguf@main",
            "hf.co/TheBloke/zephyr-7B-beta-GGUF:Q4_K_M",
            "hf.co/TheBloke/zephyr-7B-beta-GGUF",
            "registry.example.com:5000/team/zephyr:7b",
            "gguf",
            LONG,
        ],
    )
    def test_what_may_be_a_name(self, text):
        assert not looks_like_path(text)

    def test_a_slash_that_a_path_of_windows_turned_round_is_the_same(self, monkeypatch):
        monkeypatch.setattr(os, "sep", "\\")
        assert not looks_like_path(r"TheBloke\zephyr-7B-beta-GGUF")
        assert looks_like_path(r"models\zephyr\z")
        assert looks_like_path("models\\")


def test_a_name_in_a_message_has_an_end():
    assert shown_name("zephyr") == "zephyr"
    assert len(shown_name(LONG)) < 400

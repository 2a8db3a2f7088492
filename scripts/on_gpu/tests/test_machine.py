import json
import os
import unittest
from unittest import mock

from on_gpu.machine import json_objects, pci_address, prepend

from .fakes import FLASHTILE, FLASHTILE_ALONE, Scene


class ParsingTest(unittest.TestCase):
    def test_addresses_of_nvidia_smi_and_wgpu_are_the_same(self):
        self.assertEqual(pci_address("00000000:3B:00.0"), (0, 0x3B, 0, 0))
        self.assertEqual(pci_address("0000:3b:00.0"), pci_address("3b:00.0\n"))
        self.assertNotEqual(pci_address("0001:3b:00.0"), pci_address("0000:3b:00.0"))
        for nothing in ("", "[N/A]", "PCI:1"):
            self.assertIsNone(pci_address(nothing))

    def test_only_objects_are_devices(self):
        text = 'libEGL warning\n{"backend":"cuda"}\n[1]\n3\n{broken\n'
        self.assertEqual(json_objects(text), [{"backend": "cuda"}])


class MachineTest(Scene):
    def test_without_a_gpu(self):
        self.make_bundle(flashtile=FLASHTILE_ALONE)
        machine = self.make_machine()
        self.assertFalse(machine.has_nvidia_gpu)
        self.assertIsNone(machine.first("cuda"))
        self.assertEqual(machine.gpu_value("driver_version"), "")
        self.assertNotIn("VK_DRIVER_FILES", machine.own)
        self.assertEqual(machine.adapter("wgpu"), 0)

    def test_the_bundled_nvrtc_is_named_for_flashtile_alone(self):
        self.make_bundle()
        machine = self.make_machine()
        self.assertEqual(
            machine.own["FLASHTILE_NVRTC"], str(self.bundle / "lib/nvrtc/libnvrtc.so.12")
        )
        self.assertEqual(machine.first("cuda")["nvrtc"], "12.9")
        self.assertNotIn("FLASHTILE_NVRTC", machine.system)
        self.assertNotIn("lent", machine.system.get("LD_LIBRARY_PATH", ""))

    def test_who_names_an_nvrtc_gets_it(self):
        self.make_bundle()
        os.environ["FLASHTILE_NVRTC"] = "/mine/libnvrtc.so.13"
        self.assertEqual(self.make_machine().own["FLASHTILE_NVRTC"], "/mine/libnvrtc.so.13")

    def test_libraries_that_the_system_has_are_not_lent(self):
        self.make_bundle()
        for library in ("libc.so.6", "libmadeup.so.1", "libhere.so.1"):
            file = self.bundle / "lib/system" / library
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
        (self.folder / "libhere.so.1").write_text("")
        os.environ["LD_LIBRARY_PATH"] = str(self.folder)
        machine = self.make_machine()
        lent = self.folder / "work/lent"
        self.assertEqual([path.name for path in lent.iterdir()], ["libmadeup.so.1"])
        self.assertEqual(machine.own["LD_LIBRARY_PATH"], f"{lent}:{self.folder}")

    def test_one_gpu_of_several(self):
        self.make_bundle()
        self.add_gpu()
        os.environ["CUDA_VISIBLE_DEVICES"] = "3,1"
        machine = self.make_machine()
        self.assertEqual(machine.own["CUDA_VISIBLE_DEVICES"], "3")
        self.assertEqual(machine.own["CUDA_DEVICE_ORDER"], "PCI_BUS_ID")
        self.assertEqual(machine.adapter("cuda"), 0)
        self.assertEqual(machine.adapter("wgpu"), 1, "the one at nvidia-smi's address")

    def test_a_vulkan_manifest_is_made_where_none_works(self):
        # Only with EGL's library does an adapter appear.
        body = """
            import json, os
            manifest = os.environ.get("VK_DRIVER_FILES")
            library = json.load(open(manifest))["ICD"]["library_path"] if manifest else ""
            if library == "libEGL_nvidia.so.0":
                print('{"backend":"wgpu","index":0,"name":"NVIDIA Made Up 1"}')
        """
        self.make_bundle(flashtile=body)
        self.add_gpu()
        with mock.patch("on_gpu.machine.MANIFESTS", []):
            machine = self.make_machine()
        self.assertEqual(machine.vulkan_driver, str(self.folder / "work/EGL.json"))
        self.assertEqual(machine.own["VK_ICD_FILENAMES"], machine.vulkan_driver)
        self.assertIsNotNone(machine.first("wgpu"))

    def test_a_vulkan_manifest_that_is_found_comes_first(self):
        self.make_bundle(flashtile=FLASHTILE)
        self.add_gpu()
        manifest = self.folder / "icd.d/nvidia_icd.json"
        manifest.parent.mkdir()
        manifest.write_text(json.dumps({}))
        with mock.patch("on_gpu.machine.MANIFESTS", [str(manifest.parent)]):
            self.assertEqual(self.make_machine().vulkan_driver, str(manifest))

    def test_a_vulkan_driver_that_is_named_is_kept(self):
        self.make_bundle()
        self.add_gpu()
        os.environ["VK_DRIVER_FILES"] = "/mine/icd.json"
        self.assertEqual(self.make_machine().vulkan_driver, "/mine/icd.json")

    def test_a_program_that_hangs_lists_no_device(self):
        self.make_bundle(flashtile="import time; time.sleep(60)")
        with mock.patch("on_gpu.machine.PATIENCE", 0.3):
            self.assertEqual(self.make_machine().devices, [])

    def test_search_paths(self):
        paths = {"A": "/x"}
        prepend(paths, "A", [self.folder, self.folder / "missing"])
        prepend(paths, "B", [self.folder])
        prepend(paths, "C", [self.folder / "missing"])
        here = str(self.folder)
        self.assertEqual(paths, {"A": f"{here}:/x", "B": here})
        prepend(paths, "B", [self.bundle.parent / "work"], last=True)
        self.assertEqual(paths["B"], f"{here}:{here}/work")

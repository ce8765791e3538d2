"""What NVML answers on cards that these tests have never met.

Written down, not recorded. Compute capabilities: https://developer.nvidia.com/cuda-gpus. Drivers and their CUDA: the
release notes of CUDA. What a pod is told of a GPU that is cut up: NVML's reference and the MIG guide. Memory: as
`nvidia-smi`, and of slices `nvidia-smi mig -lgip`, print it in what others have published.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One kind of card, alone in its machine unless `count` says more."""

    name: str
    capability: str
    mib: int
    """Of the card, or of each of its slices."""
    has_mig: bool = False
    profile: str = ""
    """Of its slices; empty: it is whole."""
    slices: int = 0
    """How many of them the container was given."""
    count: int = 1
    errors: int | None = 0
    driver: str = "550.54.15"
    cuda: int = 12040
    """0: no libcuda.so.1."""
    is_lost: bool = False
    """The driver is there, and its GPU has fallen off the bus."""

    def environment(self) -> dict[str, str]:
        """What makes nvml.c answer as this card."""
        answers = {
            "FAKE_NAME": self.name,
            "FAKE_CAPABILITY": self.capability,
            "FAKE_MIB": str(self.mib),
            "FAKE_COUNT": str(self.count),
            "FAKE_DRIVER": self.driver,
            "FAKE_CUDA": str(self.cuda),
        }
        if self.is_lost:
            answers["FAKE_LOST"] = "1"
        if self.has_mig:
            answers["FAKE_MIG"] = str(int(bool(self.profile)))
        if self.profile:
            answers |= {"FAKE_PROFILE": f" MIG {self.profile}", "FAKE_SLICES": str(self.slices)}
        if self.errors is not None:
            answers["FAKE_ERRORS"] = str(self.errors)
        return answers


V100 = Card("Tesla V100-SXM2-16GB", "7.0", 16384)
T4 = Card("Tesla T4", "7.5", 15360)
L4 = Card("NVIDIA L4", "8.9", 23034)
A10 = Card("NVIDIA A10", "8.6", 23028)
A100_40 = Card("NVIDIA A100-SXM4-40GB", "8.0", 40960, has_mig=True)
A100_80 = Card("NVIDIA A100-SXM4-80GB", "8.0", 81920, has_mig=True)
H100 = Card("NVIDIA H100 80GB HBM3", "9.0", 81559, has_mig=True)
H200 = Card("NVIDIA H200", "9.0", 143771, has_mig=True)
B200 = Card("NVIDIA B200", "10.0", 183359, has_mig=True, driver="570.124.06", cuda=12080)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", "12.0", 32607, errors=None, driver="570.124.06", cuda=12080)
P100 = Card("Tesla P100-PCIE-16GB", "6.0", 16384)
H100_1G = Card("NVIDIA H100 80GB HBM3", "9.0", 9984, has_mig=True, profile="1g.10gb", slices=1)
H100_3G = Card("NVIDIA H100 80GB HBM3", "9.0", 40448, has_mig=True, profile="3g.40gb", slices=1)
H200_1G = Card("NVIDIA H200", "9.0", 16384, has_mig=True, profile="1g.18gb", slices=1)

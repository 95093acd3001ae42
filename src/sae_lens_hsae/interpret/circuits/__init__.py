"""Which features carry a behaviour of a language model: attributed coarse to fine, and tried by ablation."""

from sae_lens_hsae.interpret.circuits.ablation import Ablation
from sae_lens_hsae.interpret.circuits.circuit import Circuit, Edge, Node, read_circuit
from sae_lens_hsae.interpret.circuits.edges import with_edges
from sae_lens_hsae.interpret.circuits.find import find_circuit
from sae_lens_hsae.interpret.circuits.pairs import Pair, read_pairs

__all__ = ["Ablation", "Circuit", "Edge", "Node", "Pair", "find_circuit", "read_circuit", "read_pairs", "with_edges"]

"""The files of an ONNX graph: the graph and, where one message cannot hold them, its weights beside it."""

from pathlib import Path


def data_path(graph: Path) -> Path:
    """Path of the weights of a graph if they are not in it."""
    return graph.with_name(f"{graph.name}.data")


def is_data(name: str) -> bool:
    """True for the name of a file that holds weights of a graph."""
    return name.endswith(".onnx.data")


def graph_files(graph: Path) -> tuple[Path, ...]:
    """The files that a graph consists of: itself and, where it has one, its data."""
    data = data_path(graph)
    return (graph, data) if data.exists() else (graph,)


def graph_bytes(graph: Path) -> int:
    """Bytes that a graph takes on disk, its data included."""
    return sum(path.stat().st_size for path in graph_files(graph))

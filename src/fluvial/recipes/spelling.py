"""Other ways to write in a recipe what has to be written in one."""

import yaml

PRODUCT = "fluvial.manifolds.product"
_PRODUCTS = ("fluvial.Product", "fluvial.manifolds.Product", "fluvial.manifolds.product.Product")


def with_named_factors(text: str) -> str:
    """YAML in which products of manifolds, whose class takes its factors one by one, are made from a list of them; all else stays as it is.

    Args:
        text: YAML, in which ``fluvial.Product`` may stand with ``init_args: {factors: […]}`` anywhere.

    Example:
        >>> with_named_factors("manifold: {class_path: fluvial.Product, init_args: {factors: [fluvial.Sphere]}}")
        'manifold: {class_path: fluvial.manifolds.product, init_args: {factors: [fluvial.Sphere]}}'
    """
    if "Product" not in text:
        return text
    spans: set[tuple[int, int]] = set()
    waiting, seen = [yaml.compose(text, yaml.SafeLoader)], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # anchors, which may even hold themselves
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            entries = {key.value: value for key, value in node.value}
            waiting += entries.values()
            path, arguments = entries.get("class_path"), entries.get("init_args")
            names = [key.value for key, _ in arguments.value] if isinstance(arguments, yaml.MappingNode) else []
            if isinstance(path, yaml.ScalarNode) and path.value in _PRODUCTS and names == ["factors"]:
                spans.add((path.start_mark.index, path.end_mark.index))
    for start, end in sorted(spans, reverse=True):
        text = text[:start] + PRODUCT + text[end:]
    return text

"""Reads YAML whose scalars stay as they are written, and whose mappings have each key once.

So `no`, `on`, `2024` and `1e9` are texts, and the reader of a file decides what they mean.
"""

from typing import Any


def parse_yaml(text: str) -> Any:
    """Parses a document: mappings, lists and texts.

    Raises:
        ValueError: it is no YAML, or has a key twice.
    """
    import yaml

    try:
        return yaml.load(text, _yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    """Builds a mapping (`json.loads(object_pairs_hook=…)`).

    Raises:
        ValueError: a key is there twice.
    """
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


def _yaml_loader() -> Any:
    """Loader that takes every scalar as text, and refuses a key that is there twice."""
    import yaml

    class Loader(yaml.BaseLoader):
        """Loader whose mappings have each key once."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            """Constructs a mapping, with the entries of its merge keys.

            Raises:
                ValueError: a key is there twice.
                yaml.constructor.ConstructorError: a key is no text, or a merge key has no mapping.
            """
            merged: dict = {}
            pairs = []
            for key, value in node.value:
                name, content = self.construct_object(key, deep=True), self.construct_object(value, deep=True)
                if not isinstance(name, str):
                    raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
                if name == "<<" and key.style is None:  # the entries of other mappings, the first of which wins
                    for mapping in content if isinstance(content, list) else [content]:
                        if not isinstance(mapping, dict):
                            raise yaml.constructor.ConstructorError(None, None, "<<: needs a mapping", key.start_mark)
                        merged = {**mapping, **merged}
                else:
                    pairs.append((name, content))
            return {**merged, **object_with_unique_keys(pairs)}

    def mapping(loader: Any, node: Any) -> dict:
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return Loader

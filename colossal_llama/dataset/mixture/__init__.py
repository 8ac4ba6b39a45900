"""The mixture of categories: the file that asks for it, tokens by bucket, chosen documents."""

"""The same preparation with polars or DuckDB, for the benchmarks: runs where they are installed and prints JSON."""

import json
import resource
import sys
import time


def with_polars(path):
    import polars as pl

    text = {"user": pl.String, "item": pl.String}
    table = pl.read_parquet(path) if path.endswith(".parquet") else pl.read_csv(path, schema_overrides=text)
    codes = [pl.col(name).cast(pl.String).cast(pl.Categorical).to_physical() for name in text]
    table = table.with_columns(codes).sort(["user", "time"], maintain_order=True)
    return table["item"].to_numpy(), table["user"].rle().struct.field("len").to_numpy()


def with_duckdb(path):
    import duckdb

    kind = "parquet" if path.endswith(".parquet") else "csv"
    source = f"read_parquet('{path}')" if kind == "parquet" else f"read_csv('{path}', all_varchar=true)"
    base = duckdb.connect()
    columns = "user::VARCHAR AS who, item::VARCHAR AS what, time::BIGINT AS moment"
    base.execute(f"CREATE TABLE rows AS SELECT {columns}, row_number() OVER () AS place FROM {source}")
    for role in ("who", "what"):
        ids = f"SELECT {role}, min(place) AS first FROM rows GROUP BY {role}"
        codes = f"SELECT {role}, (row_number() OVER (ORDER BY first))::INT AS code FROM ({ids})"
        base.execute(f"CREATE TABLE {role}_ids AS {codes}")
    joined = "rows JOIN who_ids USING (who) JOIN what_ids USING (what)"
    query = f"SELECT what_ids.code AS item, who_ids.code AS who FROM {joined} ORDER BY who, moment, place"
    return base.execute(query).fetchnumpy()


started = time.perf_counter()
{"polars": with_polars, "duckdb": with_duckdb}[sys.argv[1]](sys.argv[2])
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))

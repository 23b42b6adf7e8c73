#!/usr/bin/env python3
"""verify_ledger.py [--key HEX] FILE... : is what a consumer stored all that its gateways signed? (- is stdin)

A second reading of gateway/LEDGER.md, beside `tidegate verify-ledger`, for SenML in JSON: a line is a pack or a record
as it came. Prints what it found per gateway and epoch as JSON, and ends with 0 when every one of them is complete.
"""
import base64, collections, hashlib, json, struct, sys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

sha = lambda data: hashlib.sha256(data)
bits = lambda number: struct.pack(">d", number or 0.0).hex()
escape = lambda text: text.replace("\\", "\\\\").replace("\n", "\\n").replace(" ", "\\s")
span = lambda ranges: {seq for first, last in ranges for seq in range(first, last + 1)}

def records(line):
    """The records of a line, each with what those before it said for all behind them."""
    pack, base = json.loads(line), {"seq": -1}
    for record in pack if isinstance(pack, list) else [pack]:
        base |= {key: record[key] for key in ("bn", "bt", "bu", "gw", "epoch") if key in record}
        base["seq"] = record.get("seq", base["seq"] + 1)
        name = record.get("topic", (base.get("bn", "") + record.get("n", "")).removeprefix(f"tidegate/{base['gw']}/"))
        yield base | record | {"name": name}

def line_of(r):
    """The canonical line of a record."""
    is_sure = r.get("clock") not in ("none", "file", "rtc") and not r.get("corrected") and ("t" in r or "bt" in r)
    time = str(round((r.get("bt", 0) + r.get("t", 0)) * 1000)) if is_sure else "-"
    value = ("n:" + bits(r["v"]) if "v" in r else "ft"[r["vb"]] if "vb" in r else "s:" + escape(r["vs"]) if "vs" in r else "-")
    if "topic" in r:
        is_binary = r["encoding"] == "base64url"
        value = "d:" + sha(base64.urlsafe_b64decode(r["vs"] + "==") if is_binary else r["vs"].encode()).hexdigest()
    unit = [f"u={escape(r.get('u', r.get('bu')))}"] if "u" in r or "bu" in r else []
    shown = {"quality": escape, "from": str, "to": str, "count": str, "raised": lambda truth: "ft"[truth], "offset": str,
             "error": str, "min": bits, "max": bits}
    rest = [f"{key}={show(r[key])}" for key, show in shown.items() if key in r]
    return " ".join([str(r["seq"]), escape(r["name"]), time, value, *unit, *rest]) + "\n"

def verify(entries, signed, pinned):
    """Compares the digests of an epoch's lines, {seq: [digest, ...]}, with its manifests as they came."""
    found = {key: [] for key in ("missing", "altered", "invented", "duplicated", "lost", "chain", "signatures")}
    digest = lambda places: sha(b"".join(entries[seq][0] for seq in places)).hexdigest()[:16]
    manifests, before = {}, (0, None, None)
    for s in signed:
        m = json.loads(s["manifest"])
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(pinned or m["key"]))
            key.verify(bytes.fromhex(s["signature"]), s["manifest"].encode())
            if manifests.setdefault(m["number"], (m, s["manifest"]))[1] != s["manifest"]:
                found["chain"].append(m["number"])
        except InvalidSignature:
            found["signatures"].append(m["number"])
    for number, (m, text) in sorted(manifests.items()):
        if (number, m["previous"]) != (before[0] + 1, before[1]) or m["from_seq"] != (before[2] or m["from_seq"]):
            found["chain"].append(number)
        before = number, sha(text.encode()).hexdigest(), m["to_seq"] + 1
    gaps = [gap for m, _ in manifests.values() for gap in m["gaps"]]
    places = lambda gap: span([(gap["from"], gap["to"])] if gap["from"] else [])
    lost = set().union(*map(places, gaps))
    found["lost"] = [gap for gap in gaps if not gap["from"] or places(gap) - entries.keys()]
    again = span((t["from"], t["to"]) for m, _ in manifests.values() for t in m["thinned"] if t["from"] < m["from_seq"])
    for m, _ in manifests.values():
        absent, thin = span(m["absent"]), span((t["from"], t["to"]) for t in m["thinned"])
        found["invented"] += sorted((absent & entries.keys()) - lost)
        digests = (m["digests"][i : i + 16] for i in range(0, len(m["digests"]), 16))
        for first in range(m["from_seq"], m["to_seq"] + 1, m["chunk"]):
            chunk = range(first, min(first + m["chunk"], m["to_seq"] + 1))
            standing = [seq for seq in chunk if seq not in absent and seq not in thin]
            signed_digest = next(digests) if standing else None
            gone = [seq for seq in standing if seq not in entries]
            found["missing"] += [seq for seq in gone if seq not in lost]
            if standing and not gone and not again & {*chunk} and digest(standing) != signed_digest:
                found["altered"].append([chunk[0], chunk[-1]])
        for t in m["thinned"]:
            there = [seq for seq in range(t["from"], t["to"] + 1) if seq in entries]
            if digest(there) != t["digest"]:
                found["missing" if len(there) < t["kept"] else "altered"].append([t["from"], t["to"]])
    for seq, lines in sorted(entries.items()):
        found["duplicated"] += [seq] * (len(lines) - len({*lines}))
        found["altered"] += [[seq, seq]] * (len({*lines}) - 1)
    is_whole = manifests and not any(found[key] for key in ("missing", "altered", "invented", "chain", "signatures"))
    verdict = "not complete" if not is_whole else "complete but for recorded losses" if found["lost"] else "complete"
    return {"verdict": verdict, "entries": len(entries), "manifests": len(manifests)} | found

if __name__ == "__main__":
    key, files = (sys.argv[2], sys.argv[3:]) if sys.argv[1] == "--key" else (None, sys.argv[1:])
    epochs = collections.defaultdict(lambda: (collections.defaultdict(list), []))
    for r in (r for name in files for line in (sys.stdin if name == "-" else open(name)) for r in records(line)):
        epochs[r["gw"], r["epoch"]][0][r["seq"]].append(sha(line_of(r).encode()).digest()[:16])
        epochs[r["gw"], r["epoch"]][1].extend([json.loads(r["vs"])] if r["name"] == "manifest" and "topic" not in r else [])
    found = [{"gateway": gw, "epoch": epoch} | verify(*book, key) for (gw, epoch), book in sorted(epochs.items())]
    print(json.dumps(found, indent=1))
    sys.exit(not found or any(one["verdict"] != "complete" for one in found))

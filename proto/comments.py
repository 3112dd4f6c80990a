"""Takes a descriptor set with source info on standard input and writes the comments in it, by full name, as JSON.

Run by `make proto`, in the generator's environment; the servers' OpenAPI documents say these comments.
"""

import json
import sys

from google.protobuf import descriptor_pb2


def comments_of(file: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    found = {}
    for location in file.source_code_info.location:
        text = " ".join((location.leading_comments + location.trailing_comments).split())
        match list(location.path) if text else []:
            case [4, message]:  # FileDescriptorProto.message_type
                found[f"{file.package}.{file.message_type[message].name}"] = text
            case [4, message, 2, field]:  # …, DescriptorProto.field
                within = file.message_type[message]
                found[f"{file.package}.{within.name}.{within.field[field].name}"] = text
    return found


if __name__ == "__main__":
    files = descriptor_pb2.FileDescriptorSet.FromString(sys.stdin.buffer.read())
    merged = {name: text for file in files.file for name, text in comments_of(file).items()}
    json.dump(dict(sorted(merged.items())), sys.stdout, indent=0, ensure_ascii=False)
    sys.stdout.write("\n")

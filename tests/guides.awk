# The programs, configurations and commands in a guide: awk -v want=c|output|conf|sh|acl tests/guides.awk GUIDE.md
#
# want=c gives one program: blocks of ```c are its main(), in their order, blocks of ```c file stand before it; so do comments
# that begin with <!-- c, which readers do not see.  want=conf gives each block behind a line "== N"; others are joined.

function flush()
{
    if (kind == want || (want == "c" && kind == "c file"))
        out()
    kind = ""
}

function out()
{
    if (want == "conf")
        printf "== %d\n%s", from, text
    else if (want != "c")
        printf "%s", text
    else if (kind == "c file")
        file = file "#line " from " \"" name "\"\n" text
    else
        main = main "#line " from " \"" name "\"\n" text
}

BEGIN { kind = "" }
FNR == 1 { name = FILENAME; sub(/.*doc\/guide\//, "doc/guide/", name) }
kind == "" && /^```[a-z]/ { kind = substr($0, 4); text = ""; from = FNR + 1; end = "^```$"; if (kind == "sh run") kind = "sh"; else if (kind == "sh") kind = "shown"; next }
kind == "" && /^<!-- c/ { kind = substr($0, 6); text = ""; from = FNR + 1; end = "^-->$"; next }
kind != "" && $0 ~ end { flush(); next }
kind != "" { text = text $0 "\n" }
END {
    if (want != "c" || main == "")
        exit
    printf "#include <nearcache.h>\n\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n\n%s\nint\nmain(void)\n{\n%s    return 0;\n}\n", file, main
}

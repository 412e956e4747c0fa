# Makes the manual pages of section 3 out of the public headers, so that they say what the headers say:
#
#     awk -f doc/manual.awk -v out=DIRECTORY -v version=0.1.0 -v date="November 22, 2026" client/nearcache.h client/nearcache/backend.h
#
# A page for every function and for every type that has a comment of its own, and nearcache(3), which lists them by section.  What it
# understands: `/* --- name` begins a section; a comment before a declaration, with or without @param and @return, belongs to it, and
# "Threads:" begins the part on threads and blocking; a declaration ends with its semicolon, one with braces with a line that
# begins with "}".  Types named in a function's prototype are shown on its page as they stand in the header.

FNR == 1 { header = FILENAME; sub(/.*client\//, "", header); head = 1; drop() }

# ---- lines

code_on { code_line($0); next }
comment_on { comment_line($0); next }
/^\/\*/ { comment_on = 1; comment = ""; comment_line($0); next }
/^#define NEAR_STATUS_TABLE/ { table_on = 1; next }
table_on { status_line($0); next }
/^(NEAR_API|typedef|enum|struct) ?[a-z_{]/ && !/^struct near__/ { code_on = 1; code = ""; code_line($0); next }
/^(#|$)/ { if ($0 == "") drop(); next }

function drop()
{
    comment = ""
}

function comment_line(line)
{
    last = line ~ /\*\/[ \t]*$/
    if (line ~ /^\/\* -----/) {
        section = line
        gsub(/^\/\* -+ |[ \t]*\*\/[ \t]*$/, "", section)
        sections[++n_sections] = section
        section_of_text = 1
        line = "/*"
    }
    sub(/^\/\*+/, "", line); sub(/[ \t]*\*\/[ \t]*$/, "", line); sub(/^ \*/, "", line); sub(/^ /, "", line)
    comment = comment line "\n"
    if (!last)
        return
    comment_on = 0
    if (head) {
        if (header ~ /nearcache\.h$/)
            overview = comment
        else
            backend_overview = comment
        head = 0
        drop()
    } else if (section_of_text) {
        section_text[n_sections] = comment
        section_of_text = 0
        drop()
    } else if (comment ~ /^ ?clang-format/) {
        drop()
    }
}

function status_line(line,    part)
{
    if (match(line, /NEAR_[A-Z_]+, -?[0-9]+, ".*"/)) {
        part = substr(line, RSTART, RLENGTH)
        statuses = statuses part "\n"
    }
    table_on = line ~ /\\$/
}

function code_line(line)
{
    code = code line "\n"
    if (code ~ /\{/ ? line !~ /^(\}|[^ ].*\{.*\}).*;/ : line !~ /;/)
        return
    code_on = 0
    declaration()
    drop()
}

# ---- declarations

function declaration(    name, i)
{
    if (code ~ /^NEAR_API/) {
        match(code, /near_[a-z0-9_]+\(/)
        name = substr(code, RSTART, RLENGTH - 1)
        functions[++n_functions] = name
        text_of[name] = comment
        code_of[name] = code
        section_of[name] = n_sections
        header_of[name] = header
        kind[name] = "function"
        return
    }
    if (code ~ /^typedef struct [a-z_]+ +[a-z_]+;/) { # an opaque handle
        handles = handles code
        return
    }
    if (match(code, /\} near_[a-z0-9_]+;/))
        name = substr(code, RSTART + 2, RLENGTH - 3)
    else if (match(code, /\(\*near_[a-z0-9_]+\)/))
        name = substr(code, RSTART + 2, RLENGTH - 3)
    else if (match(code, /^(enum|struct) near_[a-z0-9_]+/)) {
        name = substr(code, RSTART, RLENGTH)
        sub(/^[a-z]+ /, "", name)
    } else
        name = "flags" ++n_flags
    types[++n_types] = name
    text_of[name] = comment
    code_of[name] = code
    section_of[name] = n_sections
    header_of[name] = header
    kind[name] = comment != "" && name !~ /^flags/ ? "type" : "shown"
}

# ---- text

# Words for mdoc: no macro at a line's beginning, a backslash and a hyphen by their names.
function plain(text)
{
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    return text
}

# A line that begins like a macro is none.
function guarded(line)
{
    return line ~ /^[.']/ ? "\\&" line : line
}

# `word` and near_function() set off; references to pages of ours become links, each on a line of its own.
function rich(text,    done, word, bare, before, last_of)
{
    done = ""
    while (match(text, /`[^`]+`|near_[a-z0-9_]+\(\)|near_[a-z0-9_]+_fn|nearcache[a-z.-]*\([1357]\)/)) {
        before = substr(text, 1, RSTART - 1)
        word = substr(text, RSTART, RLENGTH)
        text = substr(text, RSTART + RLENGTH)
        done = done plain(before)
        if (word ~ /^`/) {
            done = done "\\fB" plain(substr(word, 2, length(word) - 2)) "\\fR"
            continue
        }
        bare = word
        sub(/\(.*/, "", bare)
        if (word ~ /^nearcache/) {
            last_of = substr(word, length(word) - 1, 1)
            done = done "\\fB" plain(bare) "\\fR(" last_of ")"
        } else if (kind[bare] == "function" || kind[bare] == "type")
            done = done "\\fB" bare "\\fR(3)"
        else
            done = done "\\fB" plain(word) "\\fR"
    }
    return done plain(text)
}

# A comment's lines, as paragraphs; lines that are indented by four or more are shown as they are.
function paragraphs(text,    n, i, lines, literal, open, pending, bullet, line)
{
    n = split(text, lines, "\n")
    open = pending = literal = 0
    for (i = 1; i <= n; i++) {
        line = lines[i]
        if (line ~ /^    +[^ ]/ && (literal || lines[i - 1] ~ /^ *$/)) {
            if (!literal)
                printf ".Bd -literal -offset indent\n" > page
            literal = 1
            sub(/^    /, "", line)
            print guarded(plain(line)) > page
            continue
        }
        if (literal && line ~ /^ *$/ && lines[i + 1] ~ /^    +[^ ]/) {
            print "" > page
            continue
        }
        if (literal)
            print ".Ed" > page
        literal = 0
        if (line ~ /^ *$/) {
            pending = open
            continue
        }
        bullet = sub(/^ +- /, "", line) ? "\\(bu " : ""
        if (pending || (bullet != "" && open))
            print ".Pp" > page
        sub(/^ +/, "", line)
        print bullet guarded(rich(line)) > page
        open = 1
        pending = 0
    }
    if (literal)
        print ".Ed" > page
}

# The first sentence, for the page's name.
function brief(text,    at)
{
    sub(/^[ \n]+/, "", text)
    gsub(/\n +/, " ", text); gsub(/\n/, " ", text)
    if (match(text, /[.:;](  ?|$)| \(/))
        text = substr(text, 1, RSTART - 1)
    sub(/\. *$/, "", text)
    if (text !~ /^(L[12]|[A-Z][A-Z])/)
        text = tolower(substr(text, 1, 1)) substr(text, 2)
    gsub(/`/, "", text)
    return plain(text)
}

# Split into description, parameters, return value, and what stands behind Threads: and Blocks:.
function take_apart(text,    n, lines, i, line, into)
{
    description = parameters = returned = threads = behind = ""
    gsub(/(  |\. |\n)Threads: /, "&\001", text)
    gsub(/Threads: \001/, "\n@threads Threads: ", text)
    gsub(/ +\n/, "\n", text)
    n = split(text, lines, "\n")
    into = "description"
    for (i = 1; i <= n; i++) {
        line = lines[i]
        if (line ~ /^ *@param/) {
            into = "parameters"
            sub(/^ *@param +/, "", line)
            match(line, /^[a-z_]+/)
            parameters = parameters "\002" substr(line, 1, RLENGTH) "\003"
            sub(/^[a-z_]+ */, "", line)
        } else if (line ~ /^ *@return/) {
            into = "returned"
            sub(/^ *@return +/, "", line)
        } else if (line ~ /^@threads/) {
            into = "threads"
            sub(/^@threads +/, "", line)
        } else if (line ~ /^ *Upholds / && into == "returned") {
            into = "behind"
        } else if (line !~ /^ / && line != "" && (into == "parameters")) {
            into = "behind"
        }
        if (into == "description") description = description line "\n"
        else if (into == "parameters") { sub(/^ +/, "", line); parameters = parameters line "\n" }
        else if (into == "returned") { sub(/^ +/, "", line); returned = returned line "\n" }
        else if (into == "threads") { sub(/^ +/, "", line); threads = threads line "\n" }
        else { sub(/^ +/, "", line); behind = behind line "\n" }
    }
}

# ---- pages

function page_begins(name, about)
{
    page = out "/" name ".3"
    printf ".Dd %s\n.Dt %s 3\n.Os \"nearcache %s\"\n.Sh NAME\n.Nm %s\n.Nd %s\n", date, toupper(name), version, name, about > page
}

function show_code(text)
{
    print ".Bd -literal" > page
    sub(/\n$/, "", text)
    gsub(/\\/, "\\e", text)
    gsub(/-/, "\\-", text)
    gsub(/\n\./, "\n\\\\\\&.", text)
    print text > page
    print ".Ed" > page
}

function prototype(name,    code, result, arguments, n, each, i)
{
    code = code_of[name]
    sub(/^NEAR_API /, "", code); sub(/;[^;]*$/, "", code)
    gsub(/[ \n]+/, " ", code)
    result = code
    sub(/ ?near_[a-z0-9_]+\(.*/, "", result)
    if (match(code, name "\\("))
        arguments = substr(code, RSTART + RLENGTH)
    sub(/\)$/, "", arguments)
    printf ".In %s\n.Ft \"%s\"\n.Fo %s\n", header, result, name > page
    n = split(split_top(arguments), each, "\001")
    for (i = 1; i <= n; i++) {
        sub(/^ /, "", each[i])
        printf ".Fa \"%s\"\n", each[i] > page
    }
    print ".Fc" > page
}

# Commas outside parentheses become \001.
function split_top(text,    i, c, depth, made)
{
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "(") depth++
        if (c == ")") depth--
        made = made (c == "," && depth == 0 ? "\001" : c)
    }
    return made
}

# The types that a prototype, or a type shown already, names.
function show_types(name, code,    i, type, any)
{
    for (i = 1; i <= n_types; i++) {
        type = types[i]
        if (type ~ /^flags/ ? !wants_flags(code, code_of[type]) : code !~ ("(^|[^a-z_])" type "([^a-z_0-9]|$)"))
            continue
        if (type == name || type ~ /^near_(bytes|error|status|stats|l2_ops)$/ || code_of[type] ~ /\(\*near_/)
            continue
        if (!any++)
            print ".Sh TYPES" > page
        show_code(code_of[type])
        if (type !~ /^flags/)
            show_flags_of(code_of[type], code)
    }
}

function wants_flags(code, flags,    n, words, i)
{
    n = split(flags, words, /[^A-Z_0-9]+/)
    for (i = 1; i <= n; i++)
        if (words[i] ~ /^NEAR_/ && code ~ words[i])
            return 1
    return 0
}

function show_flags_of(struct, code,    i)
{
    for (i = 1; i <= n_types; i++)
        if (types[i] ~ /^flags/ && wants_flags(struct, code_of[types[i]]) && !wants_flags(code, code_of[types[i]]))
            show_code(code_of[types[i]])
}

function see_also(name,    i, other, n)
{
    print ".Sh SEE ALSO" > page
    for (i = 1; i <= n_functions; i++) {
        other = functions[i]
        if (other != name && section_of[other] == section_of[name] && header_of[other] == header_of[name] && n++ < 12)
            printf ".Xr %s 3 ,\n", other > page
    }
    print ".Xr nearcache 3 ,\n.Xr nearcache.conf 5 ,\n.Xr nearcache 7" > page
}

function function_page(name,    n, i, each, part)
{
    take_apart(text_of[name])
    page_begins(name, brief(text_of[name]))
    print ".Sh SYNOPSIS" > page
    header = header_of[name]
    prototype(name)
    print ".Sh DESCRIPTION" > page
    paragraphs(description)
    if (parameters != "") {
        print ".Bl -tag -width Ds" > page
        n = split(parameters, each, "\002")
        for (i = 2; i <= n; i++) {
            split(each[i], part, "\003")
            printf ".It Fa %s\n", part[1] > page
            paragraphs(part[2])
        }
        print ".El" > page
    }
    paragraphs(behind)
    if (returned != "") {
        print ".Sh RETURN VALUES" > page
        paragraphs(returned)
    }
    if (threads != "") {
        print ".Sh THREADS" > page
        paragraphs(threads)
    }
    show_types(name, code_of[name] text_of[name])
    see_also(name)
    close(page)
}

function type_page(name)
{
    take_apart(text_of[name])
    page_begins(name, brief(text_of[name]))
    print ".Sh SYNOPSIS" > page
    printf ".In %s\n", header_of[name] > page
    show_code(code_of[name])
    print ".Sh DESCRIPTION" > page
    paragraphs(text_of[name])
    see_also(name)
    close(page)
}

function status_page(    n, i, lines, part, text)
{
    page_begins("near_status", "what a call of nearcache came to")
    print ".Sh SYNOPSIS\n.In nearcache.h" > page
    print ".Sh DESCRIPTION\n0 is done, positive numbers are answers, negative ones errors.\n.Xr near_status_text 3\nhas these texts." > page
    print ".Bl -tag -width NEAR_ERR_UNSUPPORTED" > page
    n = split(statuses, lines, "\n")
    for (i = 1; i < n; i++) {
        split(lines[i], part, /, /)
        text = lines[i]
        sub(/^[^"]*"/, "", text); sub(/"$/, "", text)
        printf ".It Dv %s Pq %s\n%s\n", part[1], plain(part[2]), plain(text) > page
    }
    print ".El\n.Sh SEE ALSO\n.Xr near_status_text 3 ,\n.Xr nearcache 3" > page
    close(page)
}

function overview_page(    s, i, name)
{
    page_begins("nearcache", "a coherent multi\\-level cache: the functions")
    print ".Sh LIBRARY\nlibnearcache (\\-lnearcache; pkg\\-config nearcache)\n.Sh SYNOPSIS\n.In nearcache.h\n.In nearcache.hpp\n.In nearcache/backend.h" > page
    print ".Sh DESCRIPTION" > page
    sub(/^[^.]*\.[ \n]*/, "", overview)
    paragraphs(overview)
    print ".Sh HANDLES" > page
    show_code(handles)
    print ".Sh FUNCTIONS" > page
    for (s = 0; s <= n_sections; s++) {
        for (i = 1; i <= n_functions && section_of[functions[i]] != s; i++)
            ;
        if (i > n_functions)
            continue
        printf ".Ss %s\n", s == 0 ? "version" : header_of[functions[i]] ~ /backend/ ? "backends of an application's own" : sections[s] > page
        if (section_text[s] ~ /[a-z]/)
            paragraphs(section_text[s])
        print ".Bl -tag -width Ds -compact" > page
        for (i = 1; i <= n_functions; i++)
            if (section_of[functions[i]] == s)
                printf ".It Xr %s 3\n%s\n", functions[i], brief(text_of[functions[i]]) > page
        for (i = 1; i <= n_types; i++)
            if (section_of[types[i]] == s && kind[types[i]] == "type")
                printf ".It Xr %s 3\n%s\n", types[i], brief(text_of[types[i]]) > page
        print ".El" > page
    }
    print ".Sh SEE ALSO\n.Xr nearcache 1 ,\n.Xr nearcache.conf 5 ,\n.Xr nearcache 7 ,\n.Xr nearcache\\-metrics 7" > page
    close(page)
}

function backend_page(    i)
{
    page_begins("nearcache-backend", "a shared tier of an application's own")
    print ".Sh SYNOPSIS\n.In nearcache/backend.h" > page
    print ".Sh DESCRIPTION" > page
    sub(/^[^:]*: /, "", backend_overview)
    paragraphs(backend_overview)
    print ".Sh TYPES" > page
    for (i = 1; i <= n_types; i++)
        if (header_of[types[i]] ~ /backend/) {
            if (text_of[types[i]] != "") {
                print ".Pp" > page
                paragraphs(text_of[types[i]])
            }
            show_code(code_of[types[i]])
        }
    print ".Sh SEE ALSO\n.Xr near_config_add_backend 3 ,\n.Xr near_l2_now 3 ,\n.Xr near_l2_log 3 ,\n.Xr nearcache 3" > page
    close(page)
}

END {
    for (i = 1; i <= n_types; i++)
        if (header_of[types[i]] ~ /backend/)
            kind[types[i]] = "shown"
    kind["near_status"] = kind["near_stats"] = "shown"
    for (i = 1; i <= n_functions; i++)
        function_page(functions[i])
    for (i = 1; i <= n_types; i++)
        if (kind[types[i]] == "type")
            type_page(types[i])
    status_page()
    overview_page()
    backend_page()
}

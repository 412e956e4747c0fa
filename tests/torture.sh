#!/bin/sh
# Every public function is tortured: it stands in a step of tests/integration/torture*.h, or below with the reason why nothing in it can fail.
cd "${srcdir:-.}" || exit 1
failed=0

exempt()
{
    cat <<'LIST'
near_version         a constant
near_value_get_info  copies what the value says
near_write_conflict  says what the write has
near_write_origin    says what the write has
near_write_sequence  says what the write has
near_owner           computes
near_owners          computes
near_set_log         keeps two words
LIST
}

for function in $(sed -n 's/^NEAR_API .*[ *]\(near_[a-z0-9_]*\)(.*/\1/p' client/nearcache.h); do
    tortured=$(grep -l -w "$function" tests/integration/torture.h tests/integration/torture_parts.h)
    named=$(exempt | grep -w "^$function")
    [ -n "$tortured$named" ] || { echo "$function: in no step of tests/integration/torture*.h"; failed=1; }
    [ -z "$tortured" ] || [ -z "$named" ] || { echo "$function: in a step, take it off the list of $0"; failed=1; }
done
exit $failed

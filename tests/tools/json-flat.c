// SPDX-License-Identifier: GPL-2.0-only
/*
 * json-flat - print the members of a JSON object as lines "key value"
 *
 * Reads standard input strictly, so that what is not JSON fails a test. Every
 * value must be an integer or a boolean, as ksmctl status --json promises.
 */
#include <stdio.h>
#include <string.h>

#include <json-c/json.h>

int main(void)
{
	struct json_object *object;
	struct json_tokener *tok;
	char text[65536];
	size_t len;

	len = fread(text, 1, sizeof(text), stdin);
	tok = json_tokener_new();
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	object = json_tokener_parse_ex(tok, text, len);
	if (!object || json_tokener_get_error(tok) != json_tokener_success) {
		fprintf(stderr, "json-flat: not JSON: %s; look at the input\n",
			json_tokener_error_desc(json_tokener_get_error(tok)));
		return 1;
	}
	/* Behind the object only white space may follow. */
	for (size_t i = json_tokener_get_parse_end(tok); i < len; i++) {
		if (!strchr(" \t\n", text[i])) {
			fprintf(stderr, "json-flat: more than one object; look at the input\n");
			return 1;
		}
	}
	if (!json_object_is_type(object, json_type_object)) {
		fprintf(stderr, "json-flat: not an object; look at the input\n");
		return 1;
	}
	json_object_object_foreach(object, key, value) {
		if (!json_object_is_type(value, json_type_int) &&
		    !json_object_is_type(value, json_type_boolean)) {
			fprintf(stderr, "json-flat: %s is neither an integer nor a boolean\n", key);
			return 1;
		}
		printf("%s %s\n", key, json_object_to_json_string(value));
	}
	json_object_put(object);
	json_tokener_free(tok);
	return 0;
}
